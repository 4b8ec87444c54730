"""Orthogonalizes all directions of a step: where their matrices are whole, or by an exchange.

Products need the whole of a matrix, and so does NorMuon's scale. Those of plain tensors are here;
those of DTensors are spread over the ranks of their mesh: exchange.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from fusedstep.optim.batches import Item, Matrix, batches_among
from fusedstep.optim.distributed import is_dtensor
from fusedstep.optim.exchange import Exchange
from fusedstep.optim.matrices import Division
from fusedstep.optim.newton_schulz import Iteration
from fusedstep.optim.normuon import Moments, Scaled, orthogonalize_batch_
from fusedstep.optim.state import compute_dtype


def direction_dtype(param: Tensor) -> torch.dtype:
    """That of a parameter's direction: bfloat16, which products read, or float64 for float64."""
    return torch.float64 if param.dtype == torch.float64 else torch.bfloat16


class MatrixGroup(NamedTuple):
    """Parameters that are made of matrices: how they are divided, iterated on and normalized."""

    params: Sequence[Tensor]
    division: Division
    iteration: Iteration
    beta2: float | None  # NorMuon's; None: not normalized


class WholeMatrices:
    """Orthogonalizes the directions of an optimizer; keeps its plans between steps."""

    def __init__(self) -> None:
        self._known: Any = None  # what the plans were made from
        self._plans: dict[Any, tuple[Here | Exchange, list[Tensor]]] = {}  # and their parameters

    def orthogonalize_(
        self,
        groups: Sequence[MatrixGroup],
        directions: Mapping[Tensor, list[Tensor]],
        moments: Mapping[Tensor, Moments],
        version: int,
    ) -> None:
        """Replaces directions by orthogonal ones. All ranks of a DTensor's mesh must call this.

        Args:
            groups: All parameters that are made of matrices, in an order that the ranks of a mesh
                agree on.
            directions: For the parameters that have a gradient here, the matrices of the direction
                as views, or, for a DTensor, the local part of the direction alone; overwritten.
            moments: NorMuon's, for the parameters that have them; the next ones are written.
            version: Another number whenever the parameters, their shapes or places have changed.
        """
        known = version, [group[1:] for group in groups]
        if known != self._known:
            self._plan(groups)
            self._known = known
        for plan, params in self._plans.values():
            plan.orthogonalize_(
                [directions.get(param) for param in params],
                [moments.get(param) for param in params],
            )

    def _plan(self, groups: Sequence[MatrixGroup]) -> None:
        """Makes a plan for each mesh, device and dtype, unless there is one for the same shapes."""
        places: dict[Any, tuple[list[Item], list[Tensor]]] = {}
        for group in groups:
            for param in group.params:
                mesh, placements = (
                    (param.device_mesh, param.placements) if is_dtensor(param) else (None, ())
                )
                place = mesh, param.device, direction_dtype(param)
                items, params = places.setdefault(place, ([], []))
                items.append(Item(param.shape, param.stride(), placements, *group[1:]))
                params.append(param)
        old, self._plans = self._plans, {}
        for place, (items, params) in places.items():
            plan, _ = old.get(place, (None, None))
            if plan is None or plan.items != items:
                mesh, device, dtype = place
                if mesh is None:
                    plan = Here(items, device, dtype)
                else:
                    plan = Exchange(mesh, group_of(mesh), items, device, dtype)
            self._plans[place] = plan, params


# Those that `group_of` made, by their ranks. All optimizers share them, and they go with the world
# that they are part of when that is destroyed.
_GROUPS: WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = WeakKeyDictionary()


def group_of(mesh: Any) -> Any:
    """The process group of all ranks of a mesh. All of them must call this.

    A mesh has groups for its dimensions. The group of several dimensions together is made once, if
    the mesh is not the whole world.
    """
    dims = [dim for dim in range(mesh.ndim) if mesh.size(dim) > 1]
    if len(dims) < 2:
        return mesh.get_group(dims[0] if dims else 0)
    world = dist.group.WORLD
    if mesh.size() == dist.get_world_size():
        return world
    ranks = tuple(sorted(mesh.mesh.flatten().tolist()))
    groups = _GROUPS.setdefault(world, {})
    if ranks not in groups:
        groups[ranks] = dist.new_group(ranks, use_local_synchronization=True)
    return groups[ranks]


class Here:
    """The matrices of plain tensors of one device and dtype."""

    def __init__(self, items: list[Item], device: torch.device, dtype: torch.dtype) -> None:
        self.items = items
        self._device, self._dtype = device, dtype
        self._batches = batches_among(items, device)

    def orthogonalize_(
        self, directions: Sequence[list[Tensor] | None], moments: Sequence[Moments | None]
    ) -> None:
        """Replaces matrices and next moments, by item; a batch of which none is there is left out.

        In the others, zeros are in the places of those that are not there.
        """
        there = [each for each in moments if each is not None]
        if there:
            torch._foreach_copy_([each.next for each in there], [each.moment for each in there])
        parts = [None if each is None else each.parts for each in moments]
        wide = compute_dtype(self._dtype)
        for batch in self._batches:
            if all(directions[matrix.item] is None for matrix in batch):
                continue
            columns, scaled = batch[0].kind.columns, []
            for m in batch:
                beta2 = self.items[m.item].beta2
                matrix = self._part(directions[m.item], m, columns, self._dtype)
                rows = None if beta2 is None else self._part(parts[m.item], m, 1, wide)
                scaled.append(Scaled(matrix, rows, beta2))
            orthogonalize_batch_(scaled, batch[0].kind.iteration)

    def _part(
        self, parts: list[Tensor] | None, matrix: Matrix, columns: int, dtype: torch.dtype
    ) -> Tensor:
        """A matrix's among the parts of its parameter, or zeros."""
        if parts is None:
            return torch.zeros(matrix.kind.rows, columns, dtype=dtype, device=self._device)
        return parts[matrix.number]
