"""Lists blocks of rows in a C++ table in place of whole parameters, so that each has a group.

Kernels read and write memory without gaps. A block is listed where it lies if it has none, as in a
contiguous matrix; else as copies, which are written back after the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.optim.distributed import is_dtensor, local
from fusedstep.optim.matrices import Division
from fusedstep.optim.memory import gapless
from fusedstep.optim.shards import first_of, held_here, without_memory
from fusedstep.optim.state import Role


class Block(NamedTuple):
    """A block of rows, as far as this rank holds it."""

    number: int  # of the whole matrix
    rows: int  # that are here
    first_element: int  # where they begin in the block; 0 if they are not consecutive there


def blocks_here(param: Tensor, division: Division, sizes: Sequence[int]) -> list[Block]:
    """The blocks of a parameter's matrices, of `sizes` rows, as far as this rank holds them."""
    if not is_dtensor(param):
        return [Block(n, rows, 0) for n, rows in enumerate(sizes) if rows]
    shard, dim = local(param), division.rows(param.dim())
    if not shard.numel():
        return []
    one = (0,) * dim  # matrix of a stack stands for all
    matrix, part = without_memory(param)[one], shard[one]
    columns = [held_here(param, d) for d in division.columns(param.dim())]
    blocks: list[Block] = []
    at = 0  # the row of the part
    for held in held_here(param, dim):
        for n, (size, end) in enumerate(zip(sizes, accumulate(sizes), strict=True)):
            begin = end - size
            rows = range(max(begin, held.start) - begin, min(end, held.stop) - begin)
            if rows:
                block, mine = matrix.narrow(0, begin, size), part.narrow(0, at, len(rows))
                blocks.append(Block(n, len(rows), first_of(block, mine, [[rows], *columns])))
                at += len(rows)
    return blocks


class Row(NamedTuple):
    """What a C++ table lists: a parameter, or blocks of its rows, with what belongs to it."""

    param: Tensor
    grad: Tensor
    arrays: list[Tensor]
    roles: list[int]  # of the arrays
    position: int  # in the optimizer's list of parameters
    first_element: int = 0  # in what it is a part of

    def blocks(self, division: Division, sizes: Sequence[int]) -> Iterator[tuple[Row, ...]]:
        """For each matrix of the parameter, blocks of so many of its rows, as views."""

        def cut(tensor: Tensor) -> list[tuple[Tensor, ...]]:
            return [matrix.split(list(sizes)) for matrix in division.whole(tensor)]

        params = cut(self.param)
        arrays = [
            [(array,) * len(sizes)] * len(params) if role == Role.STEP else cut(array)
            for array, role in zip(self.arrays, self.roles, strict=True)
        ]
        for param, grad, *others in zip(params, cut(self.grad), *arrays, strict=True):
            yield tuple(
                self._replace(param=block, grad=of_grad, arrays=list(of_arrays))
                for block, of_grad, *of_arrays in zip(param, grad, *others, strict=True)
            )


def list_rows(address: int, groups: Sequence[Sequence[Row]]) -> bool:
    """Lists rows without gaps, group after group, in the C++ table at `address`.

    Returns whether the table could take all of them.
    """
    rows = list(chain.from_iterable(groups))
    torch.ops.fusedstep.table_assign(
        address,
        [row.param for row in rows],
        [array for row in rows for array in row.arrays],
        [role for row in rows for role in row.roles],
        [len(row.arrays) for row in rows],
        list(map(len, groups)),
        [row.position for row in rows],
        [row.first_element for row in rows],
    )
    return bool(torch.ops.fusedstep.table_refresh(address, [row.grad for row in rows], []))


class RowBlocks:
    """The blocks of rows of several parameters, and their C++ table."""

    def __init__(self) -> None:
        self.handle = _C.TensorTable()
        self.address = self.handle.address
        self.release()

    def release(self) -> None:
        """Drops all tensors. The table still lists those blocks that lie without gaps."""
        self._grads: list[Tensor] = []
        self._copies: list[tuple[Tensor, Tensor]] = []  # what to write back to, and from

    @property
    def are_copied(self) -> bool:
        """Whether there are copies, which the next step has to make anew."""
        return bool(self._copies)

    def assign(self, kinds: Sequence[tuple[Division, int, list[tuple[Row, list[Block]]]]]) -> bool:
        """Lists blocks; for each division and number of blocks, the n-th of all are a group.

        Returns whether the table could take all of them.
        """
        self.release()
        groups: list[list[Row]] = []
        for division, count, rows in kinds:
            of_kind: list[list[Row]] = [[] for _ in range(count)]
            for row, here in rows:
                if row.param.numel() == 0:  # a shard of nothing
                    of_kind[0].append(row)
                    continue
                for blocks in row.blocks(division, [block.rows for block in here]):
                    for (n, _, first), block in zip(here, blocks, strict=True):
                        of_kind[n].append(block._replace(first_element=first))
            groups += of_kind
        listed = [[self._without_gaps(row) for row in group] for group in groups]
        self._grads = [row.grad for group in listed for row in group]
        return list_rows(self.address, listed)

    def _without_gaps(self, row: Row) -> Row:
        param, *arrays = map(self._to_write, (row.param, *row.arrays))
        return row._replace(param=param, grad=gapless(row.grad), arrays=arrays)

    def _to_write(self, block: Tensor) -> Tensor:
        placed = gapless(block)
        if placed is not block:
            self._copies.append((block, placed))
        return placed

    def commit(self) -> None:
        """Writes the copies back."""
        for block, copy in self._copies:
            block.copy_(copy)
