"""How DTensors' matrices are put together, each on one rank, and taken apart again.

One rank of the mesh, the owner of a batch, receives the parts of its matrices, orthogonalizes them
and returns the parts. That takes two all-to-alls, one there and one back, whatever the number of
matrices and of the mesh's dimensions.

Nothing is negotiated: every rank derives batches, owners and parts from the parameters' shapes and
placements, which all ranks know. So a matrix takes part whether or not it has a gradient on some
rank, and no rank can wait for another that has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, product
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fusedstep.optim.matrices import Division
from fusedstep.optim.newton_schulz import Iteration, Kind, batches_of, orthogonalize_
from fusedstep.optim.shards import runs_of

Box = tuple[range, ...]  # the indices of a part of a tensor, for each dimension
Slices = tuple[slice, ...]


class Item(NamedTuple):
    """What all ranks know of a parameter."""

    shape: torch.Size
    strides: tuple[int, ...]
    placements: tuple[Any, ...]
    division: Division
    iteration: Iteration


class Matrix(NamedTuple):
    """One of the matrices of a parameter."""

    item: int
    number: int  # among those of the parameter
    box: Box
    kind: Kind


def matrices_of(items: Sequence[Item]) -> list[Matrix]:
    """The matrices of all parameters, those of one in the order of `Division.matrices`."""
    matrices = []
    for i, (shape, _, _, division, iteration) in enumerate(items):
        row = 0 if division.flatten else len(shape) - 2
        rows, columns = division.shape(shape)
        sizes = division.sizes(rows)
        ends = list(accumulate(sizes))
        others = tuple(map(range, shape[row + 1 :]))
        each_of_stack = product(*([range(k, k + 1) for k in range(n)] for n in shape[:row]))
        boxes = [
            (*one, range(end - size, end), *others)
            for one in each_of_stack
            for size, end in zip(sizes, ends, strict=True)
        ]
        for number, box in enumerate(boxes):
            kind = Kind(sizes[number % len(sizes)], columns, iteration)
            matrices.append(Matrix(i, number, box, kind))
    return matrices


def batches_among(items: Sequence[Item], device: torch.device) -> list[list[Matrix]]:
    """The matrices of all parameters, cut into batches."""
    matrices = matrices_of(items)
    batches = batches_of([matrix.kind for matrix in matrices], device.type)
    return [[matrices[i] for i in batch] for batch in batches]


class Part(NamedTuple):
    """What one rank holds of one matrix, without gaps in either."""

    item: int
    shard: Slices  # where it is in the rank's shard
    matrix: Slices  # where it is in the matrix
    shape: tuple[int, ...]
    travels: bool  # to the owner; of equal parts that several ranks hold, only one does

    @property
    def size(self) -> int:
        """How many elements."""
        return prod(self.shape)


class Owned(NamedTuple):
    """A batch that this rank owns: its matrices, and who holds which parts of the i-th."""

    matrices: list[Matrix]
    parts: list[tuple[int, int, Part]]  # i, rank, part


class Exchange:
    """The matrices on one mesh, of one device and dtype, and how their parts come to their owners.

    A message from a rank to an owner lists the owner's batches in order, their matrices in order,
    and the rank's parts of each. An element travels once to its owner, and back to every rank whose
    shard has it: for its shards a rank sends and receives no more than these. As an owner it
    receives its batches, about as much where there are many more batches than ranks; a rank without
    a batch waits for the others.
    """

    def __init__(
        self, mesh: Any, group: Any, items: list[Item], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.items = items
        self._group, self._device, self._dtype = group, device, dtype
        self._mesh_shape = tuple(mesh.shape)
        ranks = dist.get_process_group_ranks(group)
        self._places = [tuple((mesh.mesh == rank).nonzero()[0].tolist()) for rank in ranks]
        self._rank = dist.get_rank(group)

        batches = batches_among(items, device)
        owners = owners_of([[matrix.kind for matrix in batch] for batch in batches], len(ranks))
        held: list[list[Part]] = [[] for _ in ranks]  # this rank's parts, by owner
        self._owned: list[Owned] = []
        for batch, owner in zip(batches, owners, strict=True):
            for matrix in batch:
                held[owner] += self._parts(matrix, self._rank, owner)
            if owner == self._rank:
                parts = [
                    (i, rank, part)
                    for i, matrix in enumerate(batch)
                    for rank in range(len(ranks))
                    for part in self._parts(matrix, rank, owner)
                ]
                self._owned.append(Owned(batch, parts))
        self._held = [part for parts in held for part in parts]
        # Elements of the messages, by rank: to the owners and from the holders, there and back.
        self._sent = [sum(p.size for p in parts if p.travels) for parts in held]
        self._returned = [sum(p.size for p in parts) for parts in held]
        self._received, self._results = [0] * len(ranks), [0] * len(ranks)
        for owned in self._owned:
            for _, rank, part in owned.parts:
                self._received[rank] += part.size * part.travels
                self._results[rank] += part.size

    def _parts(self, matrix: Matrix, rank: int, owner: int) -> Iterator[Part]:
        """What a rank holds of a matrix: one part, or several of a strided shard, or nothing."""
        item, at, there = self.items[matrix.item], self._places[rank], self._places[owner]
        # The replica that shares the owner's coordinates sends.
        travels = all(
            a == b or not placement.is_replicate()
            for a, b, placement in zip(at, there, item.placements, strict=True)
        )
        shard = (
            runs_of(size, dim, item.placements, self._mesh_shape, at)
            for dim, size in enumerate(item.shape)
        )
        for runs in product(*shard):
            in_shard, in_matrix = [], []
            for (indices, begin), wanted in zip(runs, matrix.box, strict=True):
                first = max(indices.start, wanted.start)
                count = min(indices.stop, wanted.stop) - first
                if count <= 0:
                    break
                in_shard.append(_slice(begin + first - indices.start, count))
                in_matrix.append(_slice(first - wanted.start, count))
            else:
                shape = tuple(s.stop - s.start for s in in_matrix)
                yield Part(matrix.item, tuple(in_shard), tuple(in_matrix), shape, travels)

    def orthogonalize_(self, directions: Sequence[list[Tensor] | None]) -> None:
        """Replaces the local parts of directions, by item; None counts as zeros and stays None."""
        sent = self._buffer(self._sent)
        _copy(self._between(sent, directions, [part for part in self._held if part.travels]))
        received = self._exchanged(sent, self._received, self._sent)
        del sent
        results = self._orthogonal(received)
        del received
        returned = self._exchanged(results, self._returned, self._results)
        del results
        back = self._between(returned, directions, self._held)
        _copy((shard, message) for message, shard in back)

    def _buffer(self, sizes: Sequence[int]) -> Tensor:
        return torch.zeros(sum(sizes), dtype=self._dtype, device=self._device)

    def _exchanged(self, sent: Tensor, sizes: list[int], sizes_sent: list[int]) -> Tensor:
        received = self._buffer(sizes)
        dist.all_to_all_single(received, sent, sizes, sizes_sent, group=self._group)
        return received

    def _between(
        self, messages: Tensor, directions: Sequence[list[Tensor] | None], parts: Sequence[Part]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each part in messages and in its direction, where there is one."""
        at = 0
        for part in parts:
            direction = directions[part.item]
            if direction is not None:
                (shard,) = direction
                yield messages[at : at + part.size].view(part.shape), shard[part.shard]
            at += part.size

    def _empty(self, matrix: Matrix) -> Tensor:
        """Memory for a matrix's part of its parameter, in the parameter's order of dimensions."""
        strides = self.items[matrix.item].strides
        order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
        shape = [len(matrix.box[dim]) for dim in order]
        memory = torch.empty(shape, dtype=self._dtype, device=self._device)
        return memory.permute(sorted(range(len(order)), key=order.__getitem__))

    def _orthogonal(self, received: Tensor) -> Tensor:
        """The messages to return: those of all owned batches, one after the other."""
        results = self._buffer(self._results)
        reading, writing = _starts(self._received), _starts(self._results)
        for matrices, parts in self._owned:
            wholes = list(map(self._empty, matrices))
            reads, writes = [], []
            for i, rank, part in parts:
                here = wholes[i][part.matrix]
                if part.travels:
                    reads.append((here, _taken(received, reading, rank, part)))
                writes.append((_taken(results, writing, rank, part), here))
            _copy(reads)
            orthogonalize_(
                [
                    one
                    for matrix, box in zip(matrices, wholes, strict=True)
                    for one in self.items[matrix.item].division.whole(box)
                ],
                *matrices[0].kind.iteration,
            )
            _copy(writes)
        return results


def owners_of(batches: Sequence[Sequence[Kind]], ranks: int) -> list[int]:
    """The rank that each batch goes to: the costliest first, each to the rank with the least.

    A batch counts by its share of all multiplications and, as much, by its share of all elements,
    which bounds the memory of a rank.
    """
    work = [sum(_multiplications(kind) for kind in batch) for batch in batches]
    size = [sum(kind.rows * kind.columns for kind in batch) for batch in batches]
    all_work, all_sizes = sum(work), sum(size)
    costs = [w * all_sizes + s * all_work for w, s in zip(work, size, strict=True)]  # exact
    loads, owners = [0] * ranks, [0] * len(batches)
    for i in sorted(range(len(batches)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def _multiplications(kind: Kind) -> int:
    """Those of an iteration, up to a factor."""
    m, n = sorted((kind.rows, kind.columns))
    return m * m * (2 * n + m)


def _slice(begin: int, count: int) -> slice:
    return slice(begin, begin + count)


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where the message of each rank begins."""
    return [sum(sizes[:rank]) for rank in range(len(sizes))]


def _taken(messages: Tensor, at: list[int], rank: int, part: Part) -> Tensor:
    """The next part of a rank's message; advances `at`, the place in each message."""
    here = messages[at[rank] : at[rank] + part.size].view(part.shape)
    at[rank] += part.size
    return here


def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copies the second of each pair into the first."""
    pairs = list(pairs)
    if pairs:
        torch._foreach_copy_([to for to, _ in pairs], [what for _, what in pairs])
