"""The tables of Muon's two passes: directions in place of matrices, then matrices along them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.optim.distributed import Place, local
from fusedstep.optim.matrices import Division, ratios_of
from fusedstep.optim.normuon import RowMoments
from fusedstep.optim.options import Mode
from fusedstep.optim.row_blocks import Row, RowBlocks, blocks_here
from fusedstep.optim.state import Initial, StateSpec
from fusedstep.optim.step import Plan, Step
from fusedstep.optim.tables import Entry, Groups, State, States, Table
from fusedstep.optim.whole_matrices import direction_dtype


class DirectionTable(Table):
    """The table of the first pass: matrices are represented by their directions.

    A direction has its parameter's shape and layout and is bfloat16, which the matrix products
    read, or float64 for a float64 parameter. It is not state, since every step overwrites it. It is
    kept because the C++ table and CUDA graphs point to it.
    """

    def __init__(self, function: str, place: Place) -> None:
        self.descent = DescentTable(function, place)
        self.moments = RowMoments()
        self._directions: dict[Tensor, Tensor] = {}
        self._matrices: dict[Tensor, list[Tensor]] = {}  # views of the directions, or a shard
        super().__init__(function, place)

    def rebuild(
        self, groups: list[list[Entry]], specs: list[StateSpec], state: State, initial: Initial
    ) -> None:
        """Lists directions here, and their matrices for the second pass."""
        matrices = [
            group if "momentum_buffer" in spec.names else []
            for group, spec in zip(groups, specs, strict=True)
        ]
        old = self._directions
        self._directions = {
            entry.param: _direction_of(entry.param, old.get(entry.param))
            for entry in chain.from_iterable(matrices)
        }
        self._matrices = {
            entry.param: self._matrices_of(self._directions[entry.param], spec.division)
            for group, spec in zip(matrices, specs, strict=True)
            if spec.division is not None
            for entry in group
        }
        here = [
            _of_direction(spec) if of_muon else spec
            for spec, of_muon in zip(specs, matrices, strict=True)
        ]
        super().rebuild(groups, here, state, initial)
        of_params = {
            entry.param: spec
            for group, spec in zip(matrices, specs, strict=True)
            for entry in group
        }
        self.moments.rebuild(of_params, state)
        self.descent.rebuild_for(matrices, self._directions, specs, state, initial)

    def _matrices_of(self, direction: Tensor, division: Division) -> list[Tensor]:
        return division.matrices(direction) if self.place.mesh is None else [direction]

    def _data(self) -> list[Tensor]:
        directions, own = self._directions, super()._data()
        return [directions.get(p, there) for p, there in zip(self._owners, own, strict=True)]

    def find_states(self, states: Mapping[Tensor, int]) -> None:
        """Notes where states are, for both passes."""
        super().find_states(states)
        self.descent.find_states(states)

    def _gradients(self) -> list[Tensor | None]:
        shards = super()._gradients()
        return [entry.grad for entry in self._entries] if shards is None else shards

    def open(self, states: States) -> bool:
        """Opens the tables of both passes."""
        opened = super().open(states) and self.descent.open(states)
        if opened and self.moments:
            owned = zip(self._owners, self._rows, strict=True)
            return self.moments.are_current({param: states[row] for param, row in owned})
        return opened

    def open_rebuilt(self) -> None:
        """Opens the tables of both passes after `rebuild`."""
        super().open_rebuilt()
        self.descent.open_rebuilt()

    def resting(self) -> Iterator[tuple[_C.TensorTable, Tensor]]:
        """Those of the first pass, then the matrices."""
        yield from super().resting()
        yield from self.descent.resting()

    def written_matrices(self) -> dict[Tensor, list[Tensor]]:
        """The matrices of the directions that this step wrote; of a DTensor the local part."""
        with_grad = {entry.param for entry in self._entries if entry.grad is not None}
        return {param: self._matrices[param] for param in with_grad & self._matrices.keys()}

    def release(self) -> None:
        """Drops the tensors of both passes."""
        super().release()
        self.descent.release()


def _of_direction(spec: StateSpec) -> StateSpec:
    """What the first pass needs: the momentum, and the count if either pass rounds by it."""
    counts = ("step",) if spec.mode.rounds_params else ()
    names, mode = (*counts, *spec.names), Mode(spec.mode.state_dtype)
    return StateSpec(names, spec.never_negative, mode, average=False)


class DescentTable(Table):
    """The table of the second pass: matrices, with their orthogonal directions as gradients.

    Parameters of one parameter group and one shape are a group of the table, because the step's
    ratio to the rate depends on the shape. If a parameter's matrices have several ratios, another
    C++ table lists blocks of rows in place of whole parameters, and blocks of one ratio are a group
    of it. So each block has the bits of a parameter of its own.
    """

    def __init__(self, function: str, place: Place) -> None:
        self._blocks = RowBlocks()
        self._opened: States = []
        super().__init__(function, place)

    def rebuild_for(
        self,
        groups: list[list[Entry]],
        directions: dict[Tensor, Tensor],
        specs: list[StateSpec],
        state: State,
        initial: Initial,
    ) -> None:
        """Lists the matrices that have state, `groups` being those of the optimizer."""
        self._directions = directions
        by_kind: dict[tuple[int, torch.Size], list[Entry]] = {}
        for g, group in enumerate(groups):
            for entry in group:
                by_kind.setdefault((g, entry.param.shape), []).append(entry)
        self._kinds = list(by_kind)  # of each group here: the optimizer's group and the shape
        self._divisions = [specs[g].division or Division() for g, _ in self._kinds]
        self._sizes: list[list[int]] = []  # rows of the blocks of each kind
        self._listed_without: list[int] | None = None  # parameters that no block is listed of
        self._planned: tuple[Step, Plan, Groups] | None = None
        # The first pass keeps momentum and count; this one updates masters and averages.
        here = [specs[g]._replace(names=()) for g, _ in self._kinds]
        self.rebuild(list(by_kind.values()), here, state, initial)

    def plan_for(self, step: Step, groups: Groups) -> tuple[Plan, Groups]:
        """The plan of the descent, made once for a step, and the group of each of the table's."""
        if self._planned is None or self._planned[0] is not step:
            ratios = [ratios_of(shape, groups[g]) for g, shape in self._kinds]
            sizes = [[rows for rows, _ in blocks] for blocks in ratios]
            if sizes != self._sizes:
                self._sizes, self._listed_without = sizes, None
            self._by_blocks = any(len(blocks) > 1 for blocks in ratios)
            self.address = self._blocks.address if self._by_blocks else self.handle.address
            of_kinds = [
                g for (g, _), blocks in zip(self._kinds, ratios, strict=True) for _ in blocks
            ]
            values = [
                step.values[g] | {"descent": 1.0, "counted": 1.0, "ratio": ratio}
                for g, (_, ratio) in zip(of_kinds, chain.from_iterable(ratios), strict=True)
            ]
            here = [groups[g] for g in of_kinds]
            self._planned = step, step.plan_of(step.rule, here, values), here
        if self._by_blocks and self._listed_without != self._missing:
            self._list_blocks()
        return self._planned[1:]

    def _list_blocks(self) -> None:
        """Lists blocks of the parameters with gradients; again next time if some are copies."""
        states = self._states or [self._opened[row] for row in self._rows]
        missing, grads = set(self._missing), iter(self._grads)
        params = iter(enumerate(self._copies or self.params))
        kinds = []
        for division, sizes, count in zip(
            self._divisions, self._sizes, self._group_sizes, strict=True
        ):
            rows = [
                (
                    Row(
                        param, next(grads),
                        [local(states[i][array.name]) for array in self._arrays[i]],
                        [array.role for array in self._arrays[i]], self._entries[i].position,
                    ),
                    blocks_here(self._owners[i], division, sizes),
                )
                for i, param in islice(params, count) if i not in missing
            ]  # fmt: skip
            kinds.append((division, len(sizes), rows))
        self._require(self._blocks.assign(kinds))
        self._listed_without = None if self._blocks.are_copied else self._missing

    def open(self, states: States) -> bool:
        """Opens the table, and keeps the states for blocks of rows."""
        self._opened = states
        return super().open(states)

    def commit(self) -> None:
        """Copies back blocks of rows first."""
        self._blocks.commit()
        super().commit()

    def release(self) -> None:
        """Drops the tensors, those of blocks of rows included."""
        super().release()
        self._blocks.release()
        self._opened = []

    def _gradients(self) -> list[Tensor | None]:
        return [None if e.grad is None else self._directions[e.param] for e in self._entries]


def _direction_of(param: Tensor, old: Tensor | None) -> Tensor:
    """The direction, or the local part of it: the old one if it fits, else zeros."""
    dtype = direction_dtype(param)
    new = torch.zeros_like(local(param), dtype=dtype, memory_format=torch.preserve_format)
    fits = (
        old is not None
        and (old.device, old.shape, old.stride()) == (new.device, new.shape, new.stride())
        and old.dtype == dtype
    )
    return old if old is not None and fits else new
