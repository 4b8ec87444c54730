"""Plain tensors beside DTensors in one optimizer: replicas count once, shards once each."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard

import fusedstep
from tests.distributed.check_meshes import counted_gathers
from tests.distributed.placed import Twins, assert_same_norm, named_mesh, on, placed
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check
from tests.distributed.side_by_side import whole
from tests.support.optimizers import OPTIMIZERS

SHAPES = [(7, 3), (5,), (2, 4), (3,), (1, 1)]


@check(2, 3, 4)
def plain_tensors_beside_shards(ranks: Ranks) -> None:
    """Between two kinds of shards, before and after them; one shard is of one element."""
    mesh = named_mesh(ranks.world)
    rows, replicas = on(mesh, Shard(0)), on(mesh, Replicate())
    for where in (
        [rows, None, on(mesh, Shard(1)), replicas, rows],
        [None, rows, None, None, rows],
        [replicas, None, replicas, None, replicas],
    ):
        for norm_type in (2.0, 1.0, math.inf):
            twins = Twins(SHAPES, where, norm_type=norm_type, ema_decay=0.9)
            for _ in range(3):
                twins.step()
            for missing in ([1, 3], [0, 2, 4], [1, 2, 3, 4]):
                twins.step(missing)


@check(2)
def every_optimizer_takes_a_mixture(ranks: Ranks) -> None:
    mesh = named_mesh(ranks.world)
    where = [on(mesh, Shard(0)), None, on(mesh, Replicate()), None, on(mesh, Shard(1))]
    for kind in OPTIMIZERS:
        twins = Twins(SHAPES, where, optimizer=kind.ours)
        for _ in range(3):
            twins.step()


@check(2, 3)
def functions_take_a_mixture(ranks: Ranks) -> None:
    mesh = named_mesh(ranks.world)
    where = [None, on(mesh, Shard(0)), on(mesh, Replicate()), None, on(mesh, Shard(0))]
    for norm_type in (2.0, 1.0, math.inf, 0.5, 3.0, -1.0, -math.inf):
        twins = Twins(SHAPES, where)
        twins.set_gradients()
        grads, of_one = ([p.grad for p in params] for params in (twins.spread, twins.alone))
        expected = fusedstep.get_total_norm(of_one, norm_type)
        assert_same_norm(fusedstep.get_total_norm(grads, norm_type), expected)
        fusedstep.clip_grad_norm_(twins.alone, 0.1, norm_type)
        assert_same_norm(fusedstep.clip_grad_norm_(twins.spread, 0.1, norm_type), expected)
        for grad, one in zip(grads, of_one, strict=True):
            torch.testing.assert_close(whole(grad), one, rtol=1e-7, atol=0)


@check(2, 3)
def a_mixture_takes_no_further_collective(ranks: Ranks) -> None:
    """The plain values are in every message, also of a rank that has none."""
    mesh = named_mesh(ranks.world)
    for where in ([on(mesh, Shard(0))] * 5, [on(mesh, Shard(0)), None, None, None, None]):
        twins = Twins(SHAPES, where)
        twins.set_gradients()
        with counted_gathers() as shapes:
            twins.optimizer.step()
            fusedstep.clip_grad_norm_(twins.spread, 1.0)
            fusedstep.get_total_norm([param.grad for param in twins.spread])
        assert shapes == [torch.Size([2])] * 3


@check(2, 3)
def ranks_that_have_other_plain_gradients(ranks: Ranks) -> None:
    """A rank may lack them or the tensors: what another has of a replica counts on all."""
    mesh = named_mesh(ranks.world)
    last = ranks.rank == ranks.world - 1
    for norm_type in (2.0, -1.0):
        sharded = nn.Parameter(placed(torch.zeros(4), on(mesh, Shard(0))))
        sharded.grad = placed(torch.tensor([1.0, 2.0, 3.0, 4.0]), on(mesh, Shard(0)))
        plain = nn.Parameter(torch.zeros(2))
        plain.grad = torch.tensor([5.0, 6.0]) if last else None
        expected = fusedstep.get_total_norm([torch.arange(1.0, 7.0)], norm_type)
        for params in ([sharded, plain], [plain, sharded], [sharded, plain] if last else [sharded]):
            norm = fusedstep.clip_grad_norm_(params, 1e9, norm_type)
            assert_same_norm(norm, expected)
    for _ in range(2):
        optimizer = fusedstep.AdamW([plain, sharded], max_norm=1.0)
        optimizer.step()
        assert_same_norm(optimizer.grad_norm, fusedstep.get_total_norm([torch.arange(1.0, 7.0)]))
        plain.grad = torch.tensor([5.0, 6.0]) if ranks.rank == 0 else None


@check(2, 3)
def what_is_wrong_with_one_replica_is_seen_by_all(ranks: Ranks) -> None:
    """Plain, or replicated on the mesh: max(0, NaN) is NaN, not 0."""
    mesh = named_mesh(ranks.world)
    for value in (math.nan, math.inf):
        for where in (None, on(mesh, Replicate())):
            twins = Twins([(3, 2), (4,)], [on(mesh, Shard(0)), where], nonfinite="skip")
            twins.step()
            before = [whole(param).clone() for param in twins.spread]
            twins.set_gradients()
            grad = twins.spread[1].grad
            if ranks.rank == ranks.world - 1:
                (grad.to_local() if isinstance(grad, DTensor) else grad)[1] = value
            twins.optimizer.step()
            norm = twins.optimizer.grad_norm
            assert not norm.isfinite()
            assert_same_on_all_ranks(norm, "norm")
            assert all(map(torch.equal, map(whole, twins.spread), before))


@check(2)
def what_a_scaler_finds_on_one_rank_all_skip(ranks: Ranks) -> None:
    """As a GradScaler would leave it: torch's own refuse plain tensors beside DTensors."""
    twins = Twins([(3, 2), (4,)], [on(named_mesh(2), Shard(0)), None])
    twins.step()
    before = [whole(param).clone() for param in twins.spread]
    for poisoned in (True, False):
        twins.set_gradients()
        for param in twins.spread:
            param.grad.mul_(64)
        if poisoned and ranks.rank == 1:
            twins.spread[0].grad.to_local()[0, 0] = math.inf
        twins.optimizer.grad_scale = torch.tensor(64.0)
        twins.optimizer.found_inf = torch.tensor(float(poisoned and ranks.rank == 1))
        twins.optimizer.step()
        if poisoned:
            assert all(map(torch.equal, map(whole, twins.spread), before))
    twins.reference.step()
    twins.check()


@check(4)
def replicas_that_differ_count_as_the_largest(ranks: Ranks) -> None:
    """Where a dimension is gathered anyway, ranks agree on the norm even if replicas do not."""
    mesh = named_mesh(2, 2)
    sharded = DTensor.from_local(torch.ones(2), mesh, [Shard(0), Shard(0)])
    mine = torch.full((3,), 1.0 + ranks.rank)
    replicated = DTensor.from_local(mine, mesh, [Shard(0), Replicate()], run_check=False)
    plain = torch.full((2,), 10.0 + ranks.rank)
    norm = fusedstep.get_total_norm([plain, sharded, replicated])
    assert_same_on_all_ranks(norm, "norm")
    expected = (8 * 1.0 + 3 * 2.0**2 + 3 * 4.0**2 + 2 * 13.0**2) ** 0.5
    torch.testing.assert_close(norm, torch.tensor(expected))
