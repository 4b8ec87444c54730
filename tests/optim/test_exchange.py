"""How matrices are spread: what a parameter's are, which rank owns them, what travels."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from fusedstep.optim.batches import Item, Matrix, batches_among, matrices_of, owners_of
from fusedstep.optim.matrices import Division
from fusedstep.optim.newton_schulz import Iteration, Kind
from fusedstep.optim.whole_matrices import group_of
from tests.support.tensors import assert_same_bits

ITERATION = Iteration((3.0, -4.0, 2.0), 5, 1e-7)


def item_of(shape: tuple[int, ...], division: Division | None = None, steps: int = 5) -> Item:
    strides = torch.empty(shape).stride()
    iteration = ITERATION._replace(steps=steps)
    return Item(torch.Size(shape), strides, (), division or Division(), iteration)


@pytest.mark.parametrize(
    ("shape", "division"),
    [
        ((12, 5), Division()),
        ((12, 5), Division(split_sizes=(6, 2, 4), num_heads=(3, 1, 2))),
        ((3, 2, 12, 5), Division(num_heads=4, flatten=False)),
        ((4, 2, 3, 3), Division(split_sizes=(3, 1), flatten=True)),
        ((0, 4), Division()),
        ((0, 3, 4), Division()),
    ],
    ids=str,
)
def test_matrices_are_those_that_a_whole_direction_is_cut_into(
    shape: tuple[int, ...], division: Division
) -> None:
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    expected = division.matrices(tensor)
    found = matrices_of([item_of(shape, division)])
    assert [matrix.number for matrix in found] == list(range(len(expected)))
    for matrix, whole in zip(found, expected, strict=True):
        box = tensor[tuple(slice(each.start, each.stop) for each in matrix.box)]
        (here,) = division.whole(box)
        assert_same_bits(here.contiguous(), whole.contiguous())
        assert matrix.kind == Kind(*whole.shape, ITERATION)


def test_batches_are_cut_among_all_matrices_of_equal_shape_and_iteration() -> None:
    items = [item_of(shape, steps=steps) for steps in (5, 3) for shape in ((2, 3), (4, 3), (2, 3))]
    items.append(item_of((4, 3), Division(num_heads=2)))
    batches = batches_among(items, torch.device("cpu"))

    def named(matrix: Matrix) -> tuple[int, int]:
        return matrix.item, matrix.number

    found = [list(map(named, batch)) for batch in batches]
    assert found == [
        [(0, 0), (2, 0), (6, 0), (6, 1)], [(1, 0)], [(3, 0), (5, 0)], [(4, 0)],
    ]  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_no_rank_has_more_than_twice_its_share_and_a_batch(ranks: int) -> None:
    """Of multiplications and of elements, where some matrices are thin and some are square."""
    shapes = [(1024, 1024), (1024, 4096), (64, 8192), (8, 8), (4096, 1024)]
    batches = [[Kind(*shapes[i % 5], ITERATION)] * (1 + i % 3) for i in range(60)]
    owners = owners_of(batches, ranks)
    assert owners == owners_of(batches, ranks)
    for cost in (
        lambda kind: kind.rows * kind.columns,
        lambda kind: min(kind[:2]) ** 2 * (2 * max(kind[:2]) + min(kind[:2])),
    ):
        costs = [sum(map(cost, batch)) for batch in batches]
        for rank in range(ranks):
            mine = sum(c for c, owner in zip(costs, owners, strict=True) if owner == rank)
            assert mine <= 2 * (sum(costs) / ranks + max(costs))


def test_optimizers_share_the_group_of_a_mesh_until_the_world_ends() -> None:
    """Its ranks are half of the world, and its dimensions have groups of two only."""
    ended: list[Any] = []
    for _ in range(2):
        distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
        groups: list[Any] = []
        try:
            first, again, other = (DeviceMesh("cpu", [[0, k], [2, 3]]) for k in (1, 1, 4))
            groups += [group_of(mesh) for mesh in (first, again, other)]
            assert groups[0] is groups[1] is not groups[2]
            ranks = [distributed.get_process_group_ranks(group) for group in groups[1:]]
            assert ranks == [[0, 1, 2, 3], [0, 2, 3, 4]]
            ended += map(weakref.ref, groups)
        finally:
            groups.clear()
            distributed.destroy_process_group()
    assert all(group() is None for group in ended)
