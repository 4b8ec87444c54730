"""Muon's plan: directions in the place of its parameters, and the descent along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.optim.arrays import Kept
from fusedstep.optim.modes import Mode
from fusedstep.optim.plan import Named, Plan
from fusedstep.optim.state import Initial


class DescentPlan(Plan):
    """Muon's matrices, those of one group and shape together, with orthogonal ones as gradients."""

    def rebuild_for(
        self,
        groups: list[list[Named]],
        directions: Mapping[Tensor, Tensor],
        kept: list[Kept],
        state: dict[Tensor, dict[str, Tensor]],
        initial: Initial,
    ) -> None:
        """Takes over matrices that have state, group after group of the optimizer."""
        self._directions = directions
        by_shape: dict[tuple[int, torch.Size], list[Named]] = {}
        for g, group in enumerate(groups):
            for named in group:
                by_shape.setdefault((g, named[1].shape), []).append(named)
        self.kinds = list(by_shape)  # what each row of numbers is for: a group and a shape
        # The momentum was the other plan's; what a master and an average follow is done here.
        here = [kept[g]._replace(names=()) for g, _ in self.kinds]
        self.rebuild(list(by_shape.values()), here, state, initial)

    @property
    def matrices(self) -> int:
        """How many have a gradient now."""
        return len(self._grads)

    def _gradients(self) -> list[Tensor | None]:
        return [None if p.grad is None else self._directions[p] for p in self._owners]


class MuonPlan(Plan):
    """A Plan of AdamW's parameters and, instead of Muon's, of arrays for their directions.

    A direction has its parameter's shape and layout and is bfloat16, which the matrix products
    read, or float64 of a float64 parameter. It is no state: every step writes it anew. It is kept
    because the table, and CUDA graphs, point to it.
    """

    def __init__(self, function: str) -> None:
        self.descent = DescentPlan(function)
        self._directions: dict[Tensor, Tensor] = {}
        super().__init__(function)

    def rebuild(
        self,
        groups: list[list[Named]],
        kept: list[Kept],
        state: dict[Tensor, dict[str, Tensor]],
        initial: Initial,
    ) -> None:
        matrices = [
            group if "momentum_buffer" in keeps.names else []
            for group, keeps in zip(groups, kept, strict=True)
        ]
        for label, param, _ in chain.from_iterable(matrices):
            require_matrix(self.function, label, param)  # a checkpoint may have made it Muon's
        old = self._directions
        self._directions = {
            param: _direction_of(param, old.get(param))
            for group in matrices
            for _, param, _ in group
        }
        here = [
            keeps._replace(mode=Mode(keeps.mode.state_dtype), average=False) if of_muon else keeps
            for keeps, of_muon in zip(kept, matrices, strict=True)
        ]
        super().rebuild(groups, here, state, initial)
        self.descent.rebuild_for(matrices, self._directions, kept, state, initial)

    def _memory(self, params: list[Tensor]) -> list[Tensor]:
        return [self._directions.get(param, param) for param in params]

    def _gradients(self) -> list[Tensor | None]:
        return [param.grad for param in self._owners]

    def replaced(self) -> bool:
        return super().replaced() or self.descent.replaced()

    def look(self) -> bool:
        self.descent.look()
        return super().look()

    def refresh(self) -> bool:
        return super().refresh() and self._refresh_descent()

    def refresh_by_copies(self) -> bool:
        return super().refresh_by_copies() and self._refresh_descent()

    def _refresh_descent(self) -> bool:
        """Before the first pass, so that nothing is refused between the two."""
        return not self.descent.matrices or self.descent.refresh()

    def directions(self, groups: Sequence[Mapping[str, Any]]) -> list[list[Tensor]]:
        """For each parameter group, the directions that this step wrote."""
        return [
            [
                self._directions[param]
                for param in group["params"]
                if param in self._directions and param.grad is not None
            ]
            for group in groups
        ]

    def release(self) -> None:
        super().release()
        self.descent.release()


def require_matrix(function: str, argument: str, param: Tensor) -> None:
    """Muon steps nothing else."""
    if param.dim() != 2:
        must = "have two dimensions, or be in a group with use_muon=False"
        refuse(function, argument, must, tuple(param.shape))


def _direction_of(param: Tensor, old: Tensor | None) -> Tensor:
    """Zeros, or what there is already where it fits."""
    dtype = torch.float64 if param.dtype == torch.float64 else torch.bfloat16
    new = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    fits = (
        old is not None
        and (old.device, old.shape, old.stride()) == (new.device, new.shape, new.stride())
        and old.dtype == dtype
    )
    return old if fits else new
