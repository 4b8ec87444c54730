"""How DTensors' matrices are put together, each on one rank, and taken apart again.

One rank of the mesh, the owner of a batch, receives the parts of its matrices, orthogonalizes them
and returns the parts. That takes two all-to-alls, one there and one back, whatever the number of
matrices and of the mesh's dimensions. NorMuon's moments of their rows travel in the same messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fusedstep.optim.batches import Box, Item, Matrix, batches_among, owners_of
from fusedstep.optim.normuon import Moments, Scaled, orthogonalize_batch_
from fusedstep.optim.shards import runs_of
from fusedstep.optim.state import compute_dtype

Slices = tuple[slice, ...]


class Spread(NamedTuple):
    """A tensor that is spread over the ranks: the direction of an item, or its rows' moments."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    placements: tuple[Any, ...]


class Slab(NamedTuple):
    """What an owner needs of a tensor: a matrix, or the moments of its rows."""

    tensor: int  # an item's direction; behind those of all items, their moments
    box: Box


class Part(NamedTuple):
    """What one rank holds of one slab, without gaps in either."""

    tensor: int
    shard: Slices  # where it is in the rank's shard
    slab: Slices  # where it is in the slab
    shape: tuple[int, ...]
    travels: bool  # to the owner; of equal parts that several ranks hold, only one does

    @property
    def size(self) -> int:
        """How many elements."""
        return prod(self.shape)


class Owned(NamedTuple):
    """A batch that this rank owns: its slabs, and who holds which parts of the i-th."""

    matrices: list[Matrix]
    slabs: list[Slab]
    parts: list[tuple[int, int, Part]]  # i, rank, part


class Exchange:
    """The matrices on one mesh, of one device and dtype, and how their parts come to their owners.

    A message from a rank to an owner lists the owner's batches in order, their slabs in order, and
    the rank's parts of each. An element travels once to its owner, and back to every rank whose
    shard has it: for its shards a rank sends and receives no more than these. As an owner it
    receives its batches, about as much where there are many more batches than ranks; a rank without
    a batch waits for the others. Moments travel as words of the directions' dtype, two for each of
    float32.
    """

    def __init__(
        self, mesh: Any, group: Any, items: list[Item], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.items = items
        self._group, self._device, self._dtype = group, device, dtype
        self._mesh_shape = tuple(mesh.shape)
        self._wide = compute_dtype(dtype)  # that of moments
        self._words = self._wide.itemsize // dtype.itemsize
        self._spreads = [
            *(Spread(item.shape, item.strides, item.placements) for item in items),
            *map(self._moments_of, items),
        ]
        ranks = dist.get_process_group_ranks(group)
        self._places = [tuple((mesh.mesh == rank).nonzero()[0].tolist()) for rank in ranks]
        self._rank = dist.get_rank(group)

        batches = batches_among(items, device)
        owners = owners_of([[matrix.kind for matrix in batch] for batch in batches], len(ranks))
        held: list[list[Part]] = [[] for _ in ranks]  # this rank's parts, by owner
        self._owned: list[Owned] = []
        for batch, owner in zip(batches, owners, strict=True):
            slabs = self._slabs(batch)
            for slab in slabs:
                held[owner] += self._parts(slab, self._rank, owner)
            if owner == self._rank:
                parts = [
                    (i, rank, part)
                    for i, slab in enumerate(slabs)
                    for rank in range(len(ranks))
                    for part in self._parts(slab, rank, owner)
                ]
                self._owned.append(Owned(batch, slabs, parts))
        self._held = [part for parts in held for part in parts]
        # Elements of the messages, by rank: to the owners and from the holders, there and back.
        self._sent = [sum(p.size for p in parts if p.travels) for parts in held]
        self._returned = [sum(p.size for p in parts) for parts in held]
        self._received, self._results = [0] * len(ranks), [0] * len(ranks)
        for owned in self._owned:
            for _, rank, part in owned.parts:
                self._received[rank] += part.size * part.travels
                self._results[rank] += part.size

    def _moments_of(self, item: Item) -> Spread:
        """The words of the moments of an item's rows."""
        division, dims = item.division, len(item.shape)
        shape = (*division.column_of(item.shape)[:-1], self._words)
        strides = torch.empty(shape, device="meta").stride()
        return Spread(shape, strides, division.column_placements(item.placements, dims))

    def _slabs(self, batch: Sequence[Matrix]) -> list[Slab]:
        """The matrices of a batch, then the moments of those that have some."""
        moments = []
        for matrix in batch:
            item = self.items[matrix.item]
            if item.beta2 is not None:
                columns = item.division.columns(len(item.shape))
                rows = [range(1) if d in columns else r for d, r in enumerate(matrix.box)]
                box = (*rows[:-1], range(self._words))
                moments.append(Slab(len(self.items) + matrix.item, box))
        return [*(Slab(matrix.item, matrix.box) for matrix in batch), *moments]

    def _parts(self, slab: Slab, rank: int, owner: int) -> Iterator[Part]:
        """What a rank holds of a slab: one part, or several of a strided shard, or nothing."""
        spread, at, there = self._spreads[slab.tensor], self._places[rank], self._places[owner]
        # The replica that shares the owner's coordinates sends.
        travels = all(
            a == b or not placement.is_replicate()
            for a, b, placement in zip(at, there, spread.placements, strict=True)
        )
        shard = (
            runs_of(size, dim, spread.placements, self._mesh_shape, at)
            for dim, size in enumerate(spread.shape)
        )
        for runs in product(*shard):
            in_shard, in_slab = [], []
            for (indices, begin), wanted in zip(runs, slab.box, strict=True):
                first = max(indices.start, wanted.start)
                count = min(indices.stop, wanted.stop) - first
                if count <= 0:
                    break
                in_shard.append(_slice(begin + first - indices.start, count))
                in_slab.append(_slice(first - wanted.start, count))
            else:
                shape = tuple(s.stop - s.start for s in in_slab)
                yield Part(slab.tensor, tuple(in_shard), tuple(in_slab), shape, travels)

    def orthogonalize_(
        self, directions: Sequence[list[Tensor] | None], moments: Sequence[Moments | None]
    ) -> None:
        """Replaces the local parts of directions and next moments, by item.

        None counts as zeros and stays None.
        """
        shards = [None if parts is None else parts[0] for parts in directions]
        now = [*shards, *(self._as_words(each and each.moment) for each in moments)]
        then = [*shards, *(self._as_words(each and each.next) for each in moments)]
        sent = self._buffer(self._sent)
        _copy(self._between(sent, now, [part for part in self._held if part.travels]))
        received = self._exchanged(sent, self._received, self._sent)
        del sent
        results = self._orthogonal(received)
        del received
        returned = self._exchanged(results, self._returned, self._results)
        del results
        back = self._between(returned, then, self._held)
        _copy((shard, message) for message, shard in back)

    def _as_words(self, moments: Tensor | None) -> Tensor | None:
        if moments is None:
            return None
        # Flat first: a tensor of one column may count as contiguous with any stride there.
        return moments.view(-1).view(self._dtype).view(*moments.shape[:-1], self._words)

    def _buffer(self, sizes: Sequence[int]) -> Tensor:
        return torch.zeros(sum(sizes), dtype=self._dtype, device=self._device)

    def _exchanged(self, sent: Tensor, sizes: list[int], sizes_sent: list[int]) -> Tensor:
        received = self._buffer(sizes)
        dist.all_to_all_single(received, sent, sizes, sizes_sent, group=self._group)
        return received

    def _between(
        self, messages: Tensor, shards: Sequence[Tensor | None], parts: Sequence[Part]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each part in messages and in its tensor's shard, where there is one."""
        at = 0
        for part in parts:
            shard = shards[part.tensor]
            if shard is not None:
                yield messages[at : at + part.size].view(part.shape), shard[part.shard]
            at += part.size

    def _empty(self, slab: Slab) -> Tensor:
        """Memory for a slab of a tensor, in the tensor's order of dimensions."""
        strides = self._spreads[slab.tensor].strides
        order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
        shape = [len(slab.box[dim]) for dim in order]
        memory = torch.empty(shape, dtype=self._dtype, device=self._device)
        return memory.permute(sorted(range(len(order)), key=order.__getitem__))

    def _orthogonal(self, received: Tensor) -> Tensor:
        """The messages to return: those of all owned batches, one after the other."""
        results = self._buffer(self._results)
        reading, writing = _starts(self._received), _starts(self._results)
        for batch, slabs, parts in self._owned:
            wholes = list(map(self._empty, slabs))
            reads, writes = [], []
            for i, rank, part in parts:
                here = wholes[i][part.slab]
                if part.travels:
                    reads.append((here, _taken(received, reading, rank, part)))
                writes.append((_taken(results, writing, rank, part), here))
            _copy(reads)
            words, scaled = iter(wholes[len(batch) :]), []
            for one, whole in zip(batch, wholes[: len(batch)], strict=True):
                item = self.items[one.item]
                (matrix,) = item.division.whole(whole)
                rows = None
                if item.beta2 is not None:
                    rows = next(words).view(self._wide).view(-1, 1)
                scaled.append(Scaled(matrix, rows, item.beta2))
            orthogonalize_batch_(scaled, batch[0].kind.iteration)
            _copy(writes)
        return results


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
    """Copies the second of each pair into the first, bit for bit.

    As integers where they are bfloat16: torch copies that through float32 on a GPU, and writes one
    NaN for all of them, which words of moments may look like.
    """
    pairs = [(_bits(to), _bits(what)) for to, what in pairs]
    if pairs:
        torch._foreach_copy_([to for to, _ in pairs], [what for _, what in pairs])


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
