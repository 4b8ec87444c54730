"""What a rank holds of a DTensor: which indices, and where its elements begin in the whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from fusedstep.optim.distributed import local
from fusedstep.optim.matrices import Division
from fusedstep.optim.memory import gapless, in_layout_of
from fusedstep.optim.row_blocks import blocks_here
from fusedstep.optim.shards import first_element, runs_of


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 13, 24])
def test_ranks_hold_each_index_once_or_as_often_as_it_is_replicated(size: int) -> None:
    ways = [Shard(0), Shard(1), Replicate(), _StridedShard(0, split_factor=3)]
    mesh = (2, 3)
    for placements, dim in product(product(ways, repeat=2), (0, 1)):
        held: list[int] = []
        for place in product(*map(range, mesh)):
            runs = runs_of(size, dim, placements, mesh, place)
            begin = 0
            for run in runs:
                assert run.begin == begin
                begin += len(run.indices)
                held += run.indices
            assert all(a.indices.stop != b.indices.start for a, b in pairwise(runs))
        copies = 1
        for placement, count in zip(placements, mesh, strict=True):
            copies *= count if placement.is_replicate() or placement.dim != dim else 1
        assert sorted(held) == sorted(list(range(size)) * copies)


def test_a_strided_shard_is_held_in_several_runs() -> None:
    runs = runs_of(9, 0, (_StridedShard(0, split_factor=2),), (4,), (0,))
    assert [(list(run.indices), run.begin) for run in runs] == [([0, 1], 0), ([5], 2)]


# --- where random numbers count from --------------------------------------------------------------

ROWS, COLUMNS = (Shard(0),), (Shard(1),)


class Case(NamedTuple):
    """A DTensor on a rank of a mesh."""

    shape: tuple[int, ...]
    order: tuple[int, ...]  # of its dimensions in memory, the last one without gaps
    placements: tuple[Any, ...]
    mesh: tuple[int, ...] = (2,)
    rank: int = 1

    @contextmanager
    def placed(self, where: str = "cpu") -> Iterator[tuple[Tensor, DTensor]]:
        """The whole tensor, whose elements are their numbers in memory, and the DTensor."""
        size, ranks = prod(self.shape), prod(self.mesh)
        distributed.init_process_group("fake", rank=self.rank, world_size=ranks, store=FakeStore())
        try:
            mesh = init_device_mesh("cpu", self.mesh)
            in_memory = torch.empty(device=where, size=(size,), dtype=torch.float64)
            if where == "cpu":
                torch.arange(size, out=in_memory)
            inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
            whole = in_memory.view([self.shape[d] for d in self.order]).permute(inverse)
            part = whole
            places = zip(self.placements, self.mesh, mesh.get_coordinate(), strict=True)
            for placement, count, at in places:
                if not placement.is_replicate():
                    options = {"with_padding": False, "contiguous": False}
                    part = placement._split_tensor(part, count, **options)[0][at]
            tensor = DTensor.from_local(
                in_layout_of(part, part), mesh, self.placements,
                run_check=False, shape=whole.shape, stride=whole.stride(),
            )  # fmt: skip
            yield whole, tensor
        finally:
            distributed.destroy_process_group()


def found_in(whole: Tensor, part: Tensor) -> int:
    """Where the elements of `part` are in `whole`, in the order of memory; 0 if scattered."""
    numbers, mine = (
        placed.as_strided((placed.numel(),), (1,)).tolist()
        for placed in map(gapless, (whole, part))
    )
    at = numbers.index(mine[0]) if mine else 0
    return at if numbers[at : at + len(mine)] == mine else 0


@pytest.mark.parametrize(
    ("case", "first"),
    [
        (Case((8, 3), (0, 1), ROWS), 12),
        (Case((7, 3), (0, 1), ROWS), 12),
        (Case((8, 3), (0, 1), (Shard(0), Shard(0)), (2, 2), 3), 18),
        (Case((8, 3), (0, 1), (Replicate(), Shard(0)), (2, 2), 3), 12),
        (Case((8, 3), (0, 1), (_StridedShard(0, split_factor=2),)), 0),
        (Case((4, 6), (0, 1), COLUMNS), 0),
        (Case((1, 6), (0, 1), COLUMNS), 3),
        (Case((4, 6), (1, 0), COLUMNS), 12),
        (Case((4, 6), (1, 0), ROWS), 0),
        (Case((8, 3, 2, 2), (0, 2, 3, 1), ROWS), 48),
        (Case((8, 4, 2, 2), (0, 2, 3, 1), COLUMNS), 0),
        (Case((4, 6, 5), (0, 1, 2), ROWS), 60),
        (Case((1, 6), (0, 1), ROWS), 0),  # nothing
    ],
)
def test_consecutive_elements_count_in_the_whole_tensor(case: Case, first: int) -> None:
    with case.placed() as (whole, tensor):
        assert first_element(tensor) == first == found_in(whole, local(tensor))
        assert first_element(whole) == 0


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        (2**32 - 1, 2**32 - 1),  # ends within the window
        (2**32 + 1, 0),
        (2**32 + 2**15, 2**32 + 2**15),  # a chunk begins there
        (2**33 + 2, 0),
        (2**33, 2**33),
    ],
)
def test_no_chunk_crosses_a_window_of_random_numbers(columns: int, first: int) -> None:
    """Of 2^33 elements."""
    with Case((2, columns), (0, 1), ROWS).placed("meta") as (_, tensor):
        assert first_element(tensor) == first


KERNEL = Division(split_sizes=(6, 2), flatten=True)
SPLIT = Division(split_sizes=(6, 2))


@pytest.mark.parametrize(
    ("case", "division", "firsts"),
    [
        (Case((8, 3), (0, 1), ROWS), SPLIT, [(0, 2, 12), (1, 2, 0)]),
        (Case((8, 3), (0, 1), ROWS, (4,), 3), SPLIT, [(1, 2, 0)]),
        (Case((8, 4), (0, 1), COLUMNS), SPLIT, [(0, 6, 0), (1, 2, 0)]),
        (Case((8, 4), (1, 0), COLUMNS), SPLIT, [(0, 6, 12), (1, 2, 4)]),
        (Case((8, 4), (1, 0), ROWS), SPLIT, [(0, 2, 0), (1, 2, 0)]),
        (Case((8, 3, 2, 2), (0, 2, 3, 1), ROWS), KERNEL, [(0, 2, 48), (1, 2, 0)]),
        (Case((8, 4, 2, 2), (0, 2, 3, 1), COLUMNS), KERNEL, [(0, 6, 0), (1, 2, 0)]),
        (Case((2, 8, 3), (0, 1, 2), COLUMNS), SPLIT, [(0, 2, 12), (1, 2, 0)]),
        (Case((2, 8, 3), (0, 1, 2), ROWS), SPLIT, [(0, 6, 0), (1, 2, 0)]),
        (Case((2, 8, 3), (0, 2, 1), COLUMNS), SPLIT, [(0, 2, 0), (1, 2, 0)]),
        (
            Case((8, 3), (0, 1), (_StridedShard(0, split_factor=2),)),
            SPLIT,
            [(0, 2, 6), (1, 2, 0)],
        ),
        (Case((1, 6), (0, 1), COLUMNS), Division(), [(0, 1, 3)]),
        (Case((1, 6), (0, 1), ROWS), Division(), []),
    ],
)
def test_blocks_of_rows_count_in_the_whole_block(
    case: Case, division: Division, firsts: list[tuple[int, int, int]]
) -> None:
    """Each as long as in one process, which lists whole blocks."""
    sizes = division.sizes(division.shape(case.shape)[0])
    with case.placed() as (whole, tensor):
        blocks = blocks_here(tensor, division, sizes)
        assert blocks == firsts
        if local(tensor).numel():
            lone = division.whole(whole)[-1].split(sizes)
            here = division.whole(local(tensor))[-1].split([block.rows for block in blocks])
            for block, part in zip(blocks, here, strict=True):
                of = lone[block.number]
                assert block.first_element == found_in(of, part)
        assert blocks_here(whole, division, sizes) == [(n, rows, 0) for n, rows in enumerate(sizes)]
