"""Drawn at random, the same on all ranks: meshes, shards, mixtures, stages, orders, gradients."""

from __future__ import annotations

import math
from itertools import product
from random import Random

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

import fusedstep
from tests.distributed.placed import On, Twins, assert_same_norm, named_mesh
from tests.distributed.ranks import Ranks, check
from tests.distributed.side_by_side import whole
from tests.support.optimizers import OPTIMIZERS

CASES = 40
OPTIONS = (
    {}, {"max_norm": None}, {"norm_type": 1.0}, {"norm_type": math.inf}, {"nonfinite": "skip"},
    {"max_norm": None, "nonfinite": "skip"}, {"ema_decay": 0.9},
)  # fmt: skip
ORDERS = (2.0, 1.0, math.inf, 0.5, 3.0, -1.0, -math.inf)


def drawn_shape(draw: Random) -> tuple[int, ...]:
    """Up to three dimensions, with no element, with one, or with more than there are ranks."""
    return tuple(draw.choice((0, 1, 2, 3, 5, 8)) for _ in range(draw.randrange(4)))


def drawn_place(draw: Random, meshes: list[DeviceMesh], shape: tuple[int, ...]) -> On | None:
    """Plain, or replicated or sharded along each dimension of a mesh."""
    mesh = draw.choice((None, *meshes))
    if mesh is None:
        return None
    choices: tuple[Placement, ...] = (Replicate(), *map(Shard, range(len(shape))))
    return On(mesh, tuple(draw.choice(choices) for _ in range(mesh.ndim)))


def drawn_meshes(world: int) -> list[tuple[list[DeviceMesh], list[torch.distributed.ProcessGroup]]]:
    """Meshes that a rank's tensors may be on together, and groups along which ranks differ."""
    flat = named_mesh(world)
    lines = [named_mesh(1, world), named_mesh(world, 1)]
    if world < 4:
        return [([flat, *lines], []), ([], [flat.get_group(0)])]
    grid = named_mesh(2, 2)
    return [
        ([flat, grid, grid["dim0"], grid["dim1"], *lines], []),
        ([grid["dim0"]], [grid.get_group(1)]),
        ([grid["dim1"]], [grid.get_group(0)]),
        ([], [grid.get_group(1), grid.get_group(0)]),
    ]


@check(2, 3, 4)
def any_spread_finds_what_one_process_finds(ranks: Ranks) -> None:
    possible = drawn_meshes(ranks.world)
    for case in range(CASES):
        draw = Random(case)
        meshes, groups = draw.choice(possible)
        # Along the groups, tensors have different owners; an optimizer needs one at least.
        owners = list(product(*(range(group.size()) for group in groups)))
        shapes = [drawn_shape(draw) for _ in range(len(owners) + draw.randrange(6))]
        where = [drawn_place(draw, meshes, shape) for shape in shapes]
        coordinates = tuple(torch.distributed.get_rank(group) for group in groups)
        here = [i for i in range(len(shapes)) if owners[i % len(owners)] == coordinates]
        dtype = draw.choice((torch.float32, torch.float64, torch.bfloat16))
        kind, options = draw.choice(list(OPTIMIZERS)), draw.choice(OPTIONS)
        twins = Twins(shapes, where, here, kind.ours, dtype, groups, **options)
        for _ in range(3):
            missing = [i for i in range(1, len(shapes)) if draw.random() < 0.3]
            twins.step(missing)
        twins.set_gradients(missing)
        norm_type = draw.choice(ORDERS)
        if norm_type < 0 and any(0 in shape for shape in shapes):
            norm_type = 2.0  # what has no elements has no such norm
        expected = fusedstep.clip_grad_norm_(twins.alone, 1.0, norm_type)
        found = fusedstep.clip_grad_norm_(twins.spread, 1.0, norm_type, groups=groups)
        assert_same_norm(found, expected)
        for i, param in zip(twins.here, twins.spread, strict=True):
            if param.grad is not None:
                torch.testing.assert_close(whole(param.grad), twins.alone[i].grad)
