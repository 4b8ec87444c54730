"""Muon over DTensors: the bits of one process, missing gradients, what travels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import fusedstep
from fusedstep.optim.distributed import local
from fusedstep.optim.state import MOMENT
from tests.distributed.check_meshes import named_mesh
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check, of_all_ranks
from tests.distributed.side_by_side import whole
from tests.distributed.twins import Twins
from tests.support.tensors import assert_same_bits

# Equal shapes that share batches, tall, wide, rows that ranks do not divide, fewer rows than ranks.
SHAPES = [(8, 16), (12, 12), (16, 8), (8, 16), (33, 17), (1, 5), (8, 16), (5, 1), (12, 12), (2, 40)]
REST = [(7,), (40, 8), ()]  # AdamW's
ROWS, COLUMNS, COPIES = (Shard(0),), (Shard(1),), (Replicate(),)


def values(shapes: Sequence[tuple[int, ...]], seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


class Matrices(Twins):
    """The same parameters in one process and spread over the ranks, and a Muon over each."""

    def __init__(
        self,
        mesh: DeviceMesh,
        ways: Sequence[Sequence[Any] | None],  # placements, in turn; None: a plain tensor
        dtype: torch.dtype = torch.float32,
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        one_group: bool = False,
        **options: Any,
    ) -> None:
        self.mesh, self.dtype, self.shapes = mesh, dtype, [*shapes, *REST]
        self.placements = [ways[i % len(ways)] for i in range(len(shapes))]
        self.placements += [[Replicate()] * mesh.ndim for _ in REST]
        first = values(self.shapes, 0, dtype)
        self.alone = [nn.Parameter(value.clone()) for value in first]
        self.spread = [nn.Parameter(value) for value in self.placed(first)]
        super().__init__(
            *(
                fusedstep.Muon(self.groups(of, len(shapes), one_group), **{"lr": 0.02} | options)
                for of in (self.alone, self.spread)
            )
        )

    @staticmethod
    def groups(params: list[Any], count: int, one_group: bool) -> list[dict[str, Any]]:
        """Groups that share an iteration, one with another, or one group; and AdamW's.

        The second and third have NorMuon's moments, and a batch has matrices of the first two.
        """
        groups: list[dict[str, Any]] = [
            {"params": params[:4]},
            {"params": params[4 : count - 2], "nesterov": False, "lr": 0.05, "normuon_beta2": 0.9},
            {"params": params[count - 2 : count], "ns_steps": 3, "normuon_beta2": 0.5},
        ]
        rest = {"params": params[count:], "use_muon": False}
        return [*([{"params": params[:count]}] if one_group else groups), rest]

    def placed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [
            tensor.clone()
            if placements is None
            else distribute_tensor(tensor.clone(), self.mesh, placements)
            for tensor, placements in zip(tensors, self.placements, strict=True)
        ]

    def set_grads(self, missing: Sequence[int] = ()) -> None:
        """New ones; of the parameters in `missing` none."""
        grads = values(self.shapes, 100 + self.steps, self.dtype)
        for params, new in ((self.alone, grads), (self.spread, self.placed(grads))):
            for i, (param, grad) in enumerate(zip(params, new, strict=True)):
                param.grad = None if i in missing else grad

    def step(self) -> None:
        self.set_grads()
        self.update()


# --- the bits of one process ----------------------------------------------------------------------


@check(2, 3, 4)
def rows_columns_and_copies(ranks: Ranks) -> None:
    mesh = init_device_mesh("cpu", (ranks.world,))
    for ways in ([ROWS], [COLUMNS], [ROWS, COLUMNS, COPIES]):
        twins = Matrices(mesh, ways)
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
        twins = Matrices(mesh, [ROWS, COLUMNS], dtype, **options)
        for _ in range(3):
            twins.step()


@check(4)
def both_dimensions_of_a_mesh(ranks: Ranks) -> None:
    """Shards of shards, replicas of shards, copies: each alone, and all in one exchange."""
    mesh = named_mesh(2, 2)
    ways = list(itertools.product((Shard(0), Shard(1), Replicate()), repeat=2))
    for chosen in (ways, *([way] for way in ways)):
        twins = Matrices(mesh, chosen)
        for _ in range(2):
            twins.step()


@check(4)
def meshes_that_do_not_cover_the_world(ranks: Ranks) -> None:
    """A mesh of two dimensions gets a group, once for all optimizers; a row of one has one."""
    mesh = named_mesh(2, 2)
    twins = Matrices(mesh["dim1"], [ROWS, COLUMNS])
    twins.step()
    groups = []
    new_group = dist.new_group

    def counting(*args: Any, **options: Any) -> Any:
        groups.append(args)
        return new_group(*args, **options)

    with patch.object(dist, "get_world_size", lambda: 8), patch.object(dist, "new_group", counting):
        for _ in range(2):
            twins = Matrices(mesh, [(Shard(0), Shard(1))])
            for _ in range(2):
                twins.step()
    assert groups == [((0, 1, 2, 3),)]


@check(3)
def two_ranks_of_three(ranks: Ranks) -> None:
    pair = DeviceMesh("cpu", [0, 2])
    if ranks.rank != 1:
        twins = Matrices(pair, [ROWS, COLUMNS])
        for _ in range(3):
            twins.step()


@check(2)
def dimensions_of_one_rank(ranks: Ranks) -> None:
    for shape in ((1, 2), (2, 1), (1, 2, 1)):
        twins = Matrices(named_mesh(*shape), [[Shard(0)] * len(shape)])
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
            beta2 = None if master else 0.9
            options = {"master": master, "lr": 0.05, "normuon_beta2": beta2} | entries
            twins = Matrices(mesh, [(Shard(dim),)], dtype, [shape] * 3, one_group=True, **options)
            for _ in range(2):
                twins.step()


@check(2)
def plain_matrices_beside(ranks: Ranks) -> None:
    """They are orthogonalized on every rank; an equal shape elsewhere would share no batch."""
    mesh, shapes = init_device_mesh("cpu", (ranks.world,)), [(8, 16), (12, 10), (8, 16), (12, 10)]
    twins = Matrices(mesh, [ROWS, None], shapes=shapes, one_group=True, max_norm=1e9)
    for missing in ([], [1, 2], []):
        twins.set_grads(missing)
        twins.update()


@check(2)
def gradients_placed_otherwise(ranks: Ranks) -> None:
    """Sums that are left to be done, as sequence parallelism leaves them, and other shards."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    twins = Matrices(mesh, [ROWS, COLUMNS, COPIES])
    for _ in range(3):
        twins.set_grads()
        for i, (param, one) in enumerate(zip(twins.spread, twins.alone, strict=True)):
            here = one.grad if ranks.rank == 0 else torch.zeros_like(one)
            sums = DTensor.from_local(here, mesh, [Partial()], run_check=False)
            param.grad = sums if i % 2 else param.grad.redistribute(placements=[Replicate()])
        twins.update()


# --- gradients that are missing or not finite -----------------------------------------------------


@check(2, 3)
def gradients_missing_on_all_ranks(ranks: Ranks) -> None:
    """Those of the rest of a batch have the same bits, before and after the first gradient."""
    mesh, everything = init_device_mesh("cpu", (ranks.world,)), range(len(SHAPES) + len(REST))
    for order in ([[0, 4], [], [3, 6], everything, []], [everything, range(1, 99), [6], []]):
        twins = Matrices(mesh, [ROWS, COLUMNS])
        for missing in order:
            twins.set_grads(missing)
            twins.update()


@check(2, 3)
def gradients_missing_on_one_rank(ranks: Ranks) -> None:
    """Nobody waits. There, directions are zero and nothing moves; the rest sees these zeros."""
    mesh, everything = init_device_mesh("cpu", (ranks.world,)), range(len(SHAPES))
    for missing in (everything, [0], [0, 3, 4]):
        twins = Matrices(mesh, [ROWS], max_norm=1e9)
        expected = [param.detach().clone() for param in twins.alone]
        twins.set_grads()
        for i in missing:
            twins.alone[i].grad[: first_rows(i, ranks)] = 0
            if ranks.rank == 0:
                twins.spread[i].grad = None
        for optimizer in (twins.reference, twins.optimizer):
            optimizer.step()
        for i in everything:
            moved = first_rows(i, ranks) if i in missing else 0
            expected[i][moved:] = twins.alone[i].detach()[moved:]
            assert_same_bits(whole(twins.spread[i]), expected[i], f"params[{i}]")
        twins.set_grads()
        twins.optimizer.step()
        for param in twins.spread:
            assert_same_on_all_ranks(whole(param), "a parameter")
            assert whole(param).isfinite().all()


def first_rows(i: int, ranks: Ranks) -> int:
    """How many rows of a matrix the first rank holds."""
    return -(-SHAPES[i][0] // ranks.world)


@check(2, 3)
def moments_of_columns_agree_again(ranks: Ranks) -> None:
    """A rank without a gradient leaves its replica behind; a step brings all to their owner's."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    twins = Matrices(mesh, [COLUMNS], one_group=True, normuon_beta2=0.9)
    seen = set()
    for missing in ([0, 3], [], [1, 4], []):
        twins.set_grads()
        for i in missing if ranks.rank == 0 else ():
            twins.spread[i].grad = None
        twins.optimizer.step()
        twins.steps += 1
        moments = [twins.optimizer.state[twins.spread[i]].get(MOMENT) for i in range(len(SHAPES))]
        for moment in moments if not missing else ():
            assert_same_on_all_ranks(local(moment), "moments")
        seen.add(str([None if moment is None else local(moment).tolist() for moment in moments]))
    assert len(seen) == 4


@check(2)
def moments_that_ranks_share_are_the_owners(ranks: Ranks) -> None:
    """The first rank owns the only batch; what its replica lacks or has, all go on with."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    for changed in (0, 1):
        twins = Matrices(mesh, [COLUMNS], shapes=[(8, 16)], one_group=True, normuon_beta2=0.9)
        for step in range(2):
            twins.set_grads()
            twins.optimizer.step()
            moment = local(twins.optimizer.state[twins.spread[0]][MOMENT])
            if step == 0 and ranks.rank == changed:
                moment.fill_(1e6)
        assert_same_on_all_ranks(moment, "moments")
        assert bool((moment > 1e5).all()) == (changed == 0)


@check(2, 3)
def one_rank_makes_all_skip(ranks: Ranks) -> None:
    mesh = init_device_mesh("cpu", (ranks.world,))
    twins = Matrices(mesh, [ROWS, COLUMNS], nonfinite="skip", ema_decay=0.9)
    twins.step()
    twins.set_grads()
    twins.alone[4].grad[-1, 0] = math.nan
    if ranks.rank == ranks.world - 1:
        local(twins.spread[4].grad)[-1, 0] = math.nan
    before = [whole(param).clone() for param in twins.spread]
    twins.update()
    assert not twins.optimizer.grad_norm.isfinite()
    for param, kept in zip(twins.spread, before, strict=True):
        assert_same_bits(whole(param), kept, "a parameter")
    twins.step()


# --- what travels ---------------------------------------------------------------------------------


@contextmanager
def counted_bytes() -> Iterator[list[tuple[int, int]]]:
    """For each all-to-all meanwhile: the bytes from this rank to others, and from them."""
    seen: list[tuple[int, int]] = []
    exchange = dist.all_to_all_single

    def counting(to: Tensor, what: Tensor, taken: list[int], sent: list[int], group: Any) -> Any:
        me, size = dist.get_rank(group), what.element_size()
        seen.append((size * (sum(sent) - sent[me]), size * (sum(taken) - taken[me])))
        assert (to.numel(), what.numel()) == (sum(taken), sum(sent))
        return exchange(to, what, taken, sent, group=group)

    with patch.object(dist, "all_to_all_single", counting):
        yield seen


@check(2, 3, 4)
def two_messages_of_a_shard_each(ranks: Ranks) -> None:
    """In bfloat16, less what stays on its rank; there from one replica, back to all.

    Moments are where rows are, in float32; ranks that share a row are replicas.
    """
    world, shapes = ranks.world, [(12, 24), (24, 12)] * 6 + [(36, 12)] * 3
    elements, rows = sum(map(math.prod, shapes)), sum(m for m, _ in shapes)
    others = Fraction(world - 1, world)
    # Of directions there and back, then of moments.
    cases: list[tuple[DeviceMesh, Sequence[Any], Sequence[Any]]] = [
        (init_device_mesh("cpu", (world,)), ROWS, [others] * 4),
        (init_device_mesh("cpu", (world,)), COLUMNS, [others, others, 0, world - 1]),
    ]
    if world == 4:
        mesh, half = named_mesh(2, 2), Fraction(1, 2)
        cases += [
            (mesh, (Shard(0), Shard(1)), [half * 3 / 2, half * 3 / 2, half, half * 3]),
            (mesh, (Replicate(), Shard(0)), [half, half * 3] * 2),
            (mesh, (Replicate(), Replicate()), [0, 3] * 2),
        ]
    for (mesh, way, times), beta2 in itertools.product(cases, (None, 0.9)):
        twins = Matrices(mesh, [way], shapes=shapes, one_group=True, normuon_beta2=beta2)
        twins.step()
        twins.set_grads()
        with counted_bytes() as seen:
            twins.update()
        sent, taken = zip(*seen, strict=True)
        of_all = [sum(column) for column in zip(*of_all_ranks(sent), strict=True)]
        moments = 0 if beta2 is None else 4 * rows
        there, back, moments_there, moments_back = times
        assert of_all == [
            2 * elements * there + moments * moments_there,
            2 * elements * back + moments * moments_back,
        ]
        held = [local(param) for param in twins.spread[: len(shapes)]]
        shard = sum(2 * each.numel() + (0 if beta2 is None else 4 * len(each)) for each in held)
        assert sent[0] <= shard
        assert taken[1] <= shard
