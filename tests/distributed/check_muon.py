"""Muon over DTensors: the bits of one process, whole matrices spread over the ranks, what travels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import fusedstep
from tests.distributed.check_meshes import named_mesh
from tests.distributed.ranks import Ranks, check
from tests.distributed.side_by_side import whole
from tests.support.tensors import assert_same_bits

# Equal shapes that share batches, tall, wide, rows that ranks do not divide, fewer rows than ranks.
SHAPES = [(8, 16), (12, 12), (16, 8), (8, 16), (33, 17), (1, 5), (8, 16), (5, 1), (12, 12), (2, 40)]
REST = [(7,), (40, 8), ()]  # AdamW's
ROWS, COLUMNS, COPIES = (Shard(0),), (Shard(1),), (Replicate(),)


def values(shapes: Sequence[tuple[int, ...]], seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


class Twins:
    """The same parameters in one process and spread over the ranks, and a Muon over each."""

    def __init__(
        self,
        mesh: DeviceMesh,
        ways: Sequence[Sequence[Any]],  # placements, in turn
        dtype: torch.dtype = torch.float32,
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        **options: Any,
    ) -> None:
        self.mesh, self.dtype, self.shapes = mesh, dtype, [*shapes, *REST]
        self.placements = [ways[i % len(ways)] for i in range(len(shapes))]
        self.placements += [[Replicate()] * mesh.ndim for _ in REST]
        first = values(self.shapes, 0, dtype)
        self.alone = [nn.Parameter(value.clone()) for value in first]
        self.spread = [nn.Parameter(value) for value in self.placed(first)]
        self.reference, self.optimizer = (
            self.muon_over(params, len(shapes), options) for params in (self.alone, self.spread)
        )
        self.steps = 0

    @staticmethod
    def muon_over(params: list[Any], count: int, options: dict[str, Any]) -> fusedstep.Muon:
        """Groups that share an iteration, one with another, and AdamW's."""
        groups = [
            {"params": params[:4]},
            {"params": params[4 : count - 2], "nesterov": False, "lr": 0.05},
            {"params": params[count - 2 : count], "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw"},
            {"params": params[count:], "use_muon": False},
        ]
        return fusedstep.Muon(groups, **{"lr": 0.02} | options)

    def placed(self, tensors: Sequence[Tensor]) -> list[DTensor]:
        return [
            distribute_tensor(tensor.clone(), self.mesh, placements)
            for tensor, placements in zip(tensors, self.placements, strict=True)
        ]

    def set_grads(self) -> None:
        grads = values(self.shapes, 100 + self.steps, self.dtype)
        for params, new in ((self.alone, grads), (self.spread, self.placed(grads))):
            for param, grad in zip(params, new, strict=True):
                param.grad = grad

    def step(self) -> None:
        self.set_grads()
        self.update()

    def update(self) -> None:
        """One step of both, then the comparison of every bit."""
        self.reference.step()
        self.optimizer.step()
        self.steps += 1
        self.check()

    def check(self) -> None:
        for i, (param, one) in enumerate(zip(self.spread, self.alone, strict=True)):
            what = f"params[{i}] {self.shapes[i]} {self.placements[i]} after step {self.steps}"
            assert_same_bits(whole(param), one.detach(), what)
            states, expected = self.optimizer.state[param], self.reference.state[one]
            assert states.keys() == expected.keys()
            for name, state in states.items():
                assert_same_bits(whole(state), expected[name], f"{name} of {what}")
                if name != "step":
                    assert state.placements == param.placements


# --- the bits of one process ----------------------------------------------------------------------


@check(2, 3, 4)
def rows_columns_and_copies(ranks: Ranks) -> None:
    mesh = init_device_mesh("cpu", (ranks.world,))
    for ways in ([ROWS], [COLUMNS], [ROWS, COLUMNS, COPIES]):
        twins = Twins(mesh, ways)
        for _ in range(4):
            twins.step()


@check(2, 3)
def matrices_of_other_dtypes(ranks: Ranks) -> None:
    """With masters and averages."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    for dtype, options in (
        (torch.float64, {"ema_decay": 0.5}),
        (torch.bfloat16, {"master": "remainder", "ema_decay": 0.9}),
        (torch.bfloat16, {"master": "float32", "nesterov": False}),
    ):
        twins = Twins(mesh, [ROWS, COLUMNS], dtype, **options)
        for _ in range(3):
            twins.step()


@check(4)
def both_dimensions_of_a_mesh(ranks: Ranks) -> None:
    """Shards of shards, replicas of shards, copies: each alone, and all in one exchange."""
    mesh = named_mesh(2, 2)
    ways = list(itertools.product((Shard(0), Shard(1), Replicate()), repeat=2))
    for chosen in (ways, *([way] for way in ways)):
        twins = Twins(mesh, chosen)
        for _ in range(2):
            twins.step()


@check(4)
def meshes_that_do_not_cover_the_world(ranks: Ranks) -> None:
    """A mesh of two dimensions gets a group of its own, once; a row of one has a group."""
    mesh = named_mesh(2, 2)
    twins = Twins(mesh["dim1"], [ROWS, COLUMNS])
    twins.step()
    groups = []
    new_group = dist.new_group

    def counting(*args: Any, **options: Any) -> Any:
        groups.append(args)
        return new_group(*args, **options)

    with patch.object(dist, "get_world_size", lambda: 8), patch.object(dist, "new_group", counting):
        twins = Twins(mesh, [(Shard(0), Shard(1))])
        for _ in range(2):
            twins.step()
    assert groups == [([0, 1, 2, 3],)]


@check(3)
def two_ranks_of_three(ranks: Ranks) -> None:
    pair = DeviceMesh("cpu", [0, 2])
    if ranks.rank != 1:
        twins = Twins(pair, [ROWS, COLUMNS])
        for _ in range(3):
            twins.step()


@check(2)
def dimensions_of_one_rank(ranks: Ranks) -> None:
    for shape in ((1, 2), (2, 1), (1, 2, 1)):
        twins = Twins(named_mesh(*shape), [[Shard(0)] * len(shape)])
        for _ in range(2):
            twins.step()


@check(2, 4)
def parameters_made_of_several_matrices(ranks: Ranks) -> None:
    """Heads, stacks and kernels, of several ratios, sharded along any dimension."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    cases: list[tuple[tuple[int, ...], dict[str, Any]]] = [
        ((24, 10), {"split_sizes": (12, 8, 4), "num_heads": (3, 2, 1)}),
        ((24, 10), {"split_sizes": (20, 4), "adjust_lr_fn": "spectral_unclamped"}),
        ((5, 12, 6), {}),
        ((5, 12, 6), {"split_sizes": (9, 3), "adjust_lr_fn": "match_rms_adamw"}),
        ((10, 6, 3, 3), {"flatten": True}),
        ((2, 3, 8, 4), {"flatten": False, "num_heads": 2}),
    ]
    for (shape, entries), master in itertools.product(cases, (None, "remainder")):
        for dim in range(len(shape)):
            dtype = torch.bfloat16 if master else torch.float32
            twins = Twins.__new__(Twins)
            twins.mesh, twins.dtype, twins.steps = mesh, dtype, 0
            twins.shapes, twins.placements = [shape] * 3, [(Shard(dim),)] * 3
            first = values(twins.shapes, 0, dtype)
            twins.alone = [nn.Parameter(value.clone()) for value in first]
            twins.spread = [nn.Parameter(value) for value in twins.placed(first)]
            twins.reference, twins.optimizer = (
                fusedstep.Muon(params, lr=0.05, master=master, **entries)
                for params in (twins.alone, twins.spread)
            )
            for _ in range(2):
                twins.step()
