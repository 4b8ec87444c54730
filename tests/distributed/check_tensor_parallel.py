"""Tensor parallelism: columns and rows split, replicated parameters, sums left to be done."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import fusedstep
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check
from tests.distributed.side_by_side import SideBySide, whole


def split(model: nn.Sequential) -> nn.Module:
    """Uneven columns, then rows whose bias is replicated, then columns again."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    columns = ColwiseParallel(output_layouts=Replicate())
    return parallelize_module(
        model,
        mesh,
        {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel(), "4": columns},
    )


@check(2, 3)
def columns_and_rows(ranks: Ranks) -> None:
    for norm_type in (2.0, 1.0, math.inf):
        models = SideBySide(split, norm_type=norm_type)
        placements = {param.placements for param in models.spread.parameters()}
        assert placements == {(Shard(0),), (Shard(1),), (Replicate(),)}
        for _ in range(3):
            models.step()


@check(2)
def sums_that_are_left_to_be_done(ranks: Ranks) -> None:
    """Sequence parallelism: each rank's gradient of a norm's weight is of its own tokens only."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    alone, spread = (nn.Sequential(nn.LayerNorm(5)).double() for _ in range(2))
    parallelize_module(spread, mesh, {"0": SequenceParallel()})
    params, reference = list(spread.parameters()), list(alone.parameters())
    optimizers = [fusedstep.AdamW(p, lr=0.1, max_norm=1.0) for p in (params, reference)]
    mine = DTensor.from_local(tokens, mesh, [Replicate()]).redistribute(placements=[Shard(1)])
    for _ in range(3):
        for model, x in ((spread, mine.to_local()), (alone, tokens)):
            y = model(x)
            y = y.to_local() if isinstance(y, DTensor) else y
            (y**3).sum().backward()
        assert all(param.grad.placements == (Partial(),) for param in params)
        kept = [param.grad.to_local().clone() for param in params]
        for optimizer in optimizers:
            optimizer.step()
        for param, grad in zip(params, kept, strict=True):
            assert torch.equal(param.grad.to_local(), grad)  # not rewritten: still to be summed
        ours, theirs = (optimizer.grad_norm for optimizer in optimizers)
        assert_same_on_all_ranks(ours, "grad_norm")
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        norm = fusedstep.clip_grad_norm_(params, 0.5)
        torch.testing.assert_close(norm, theirs, rtol=1e-6, atol=0)
        fusedstep.clip_grad_norm_(reference, 0.5)
        sums = fusedstep.get_total_norm([param.grad for param in params])
        torch.testing.assert_close(sums, torch.clamp(theirs, max=0.5), rtol=1e-5, atol=0)
        for param, one in zip(params, reference, strict=True):
            torch.testing.assert_close(param.full_tensor(), one.data, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(param.grad.full_tensor(), one.grad, rtol=1e-11, atol=1e-11)
            param.grad = one.grad = None


@check(2)
def a_rank_that_looks_twice_communicates_once(ranks: Ranks) -> None:
    """An odd layout on one rank makes it rebuild its table, and no rank waits for another."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    summed = nn.Parameter(distribute_tensor(torch.zeros(3), mesh, [Replicate()]))
    sharded = nn.Parameter(distribute_tensor(torch.zeros(2 * ranks.world, 2), mesh, [Shard(0)]))
    optimizer = fusedstep.AdamW([summed, sharded], max_norm=1.0)
    for step in range(3):
        summed.grad = DTensor.from_local(torch.ones(3), mesh, [Partial()])
        local = torch.full((2, 2), 2.0)
        if step == 1 and ranks.rank == 0:
            local = torch.stack([local, local], dim=-1)[..., 0]  # with gaps
        sharded.grad = DTensor.from_local(local, mesh, [Shard(0)])
        optimizer.step()
        expected = math.sqrt(3 * ranks.world**2 + 4 * 4 * ranks.world)
        assert_same_on_all_ranks(optimizer.grad_norm, "grad_norm")
        assert math.isclose(float(optimizer.grad_norm), expected, rel_tol=1e-6)


@check(2)
def sums_after_a_step_without_some_of_the_gradients(ranks: Ranks) -> None:
    """Ranks sum in one order, although one of them met the parameters in another."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    sharded = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    replicated = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Replicate()]))
    optimizer = fusedstep.SGD([sharded, replicated], lr=1.0)
    if ranks.rank == 0:
        sharded.grad = DTensor.from_local(torch.zeros(2, 3), mesh, [Shard(0)])
    replicated.grad = DTensor.from_local(torch.zeros(4, 3), mesh, [Replicate()])
    optimizer.step()
    sharded.grad = DTensor.from_local(torch.full((4, 3), 10.0), mesh, [Partial()])
    replicated.grad = DTensor.from_local(torch.ones(4, 3), mesh, [Partial()])
    optimizer.step()
    assert torch.equal(whole(sharded), torch.full((4, 3), -19.0))
    assert torch.equal(whole(replicated), torch.full((4, 3), -1.0))


@check(2)
def gradients_still_on_their_way(ranks: Ranks) -> None:
    """An asynchronous redistribution is waited for."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    param = nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Replicate()]))
    partial = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    param.grad = partial.redistribute(placements=[Replicate()], async_op=True)
    assert type(param.grad.to_local()) is not torch.Tensor
    assert fusedstep.get_total_norm([param.grad]) == 2 * ranks.world
    optimizer = fusedstep.AdamW([param], max_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm == 2 * ranks.world
    assert fusedstep.clip_grad_norm_([param], 1.0) == 2 * ranks.world
    expected = torch.full((4,), 0.5)
    torch.testing.assert_close(whole(param.grad), expected, rtol=1e-5, atol=0)


@check(2)
def backward_through_stale_parameters_raises(ranks: Ranks) -> None:
    """The step advances autograd's versions of what it wrote; not of a shard's view, like torch."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    param = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    param.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    optimizer = fusedstep.AdamW([param])
    stale, view = (param**2).sum(), param.to_local()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()
    view.sum().backward()  # some modules keep such views
