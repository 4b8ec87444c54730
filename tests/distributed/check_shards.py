"""FSDP2: uneven and empty shards, all norms, all optimizers, the stand-alone clip."""

from __future__ import annotations

import math

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

import fusedstep
from fusedstep.optim.distributed import local
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check
from tests.distributed.side_by_side import SideBySide, make_model, shard, whole
from tests.support.optimizers import OPTIMIZERS
from tests.support.refusals import refuses


@check(2, 3)
def uneven_and_empty_shards(ranks: Ranks) -> None:
    double, single = torch.float64, torch.float32
    for dtype, norm_type in ((double, 2.0), (double, 1.0), (double, math.inf), (single, 2.0)):
        models = SideBySide(shard, ranks.rank, ranks.world, dtype, norm_type=norm_type)
        for _ in range(3):
            models.step()
    sizes = [param.to_local().numel() for param in models.spread.parameters()]
    assert (0 in sizes) == (ranks.rank > 0)


@check(2)
def every_optimizer(ranks: Ranks) -> None:
    for kind in OPTIMIZERS:
        models = SideBySide(shard, ranks.rank, ranks.world, optimizer=kind.ours)
        for _ in range(3):
            models.step()


@check(2)
def state_is_placed_as_its_parameter(ranks: Ranks) -> None:
    models = SideBySide(shard, ranks.rank, ranks.world)
    models.step()
    for param in models.spread.parameters():
        state = models.optimizer.state[param]
        for name in ("exp_avg", "exp_avg_sq"):
            assert isinstance(state[name], DTensor)
            assert state[name].placements == param.placements
            assert state[name].device_mesh == param.device_mesh
            assert state[name].shape == param.shape
        assert not isinstance(state["step"], DTensor)  # as torch's


@check(2)
def half_precision_shards_have_float32_state(ranks: Ranks) -> None:
    model = shard(make_model(torch.bfloat16))
    optimizer = fusedstep.AdamW(model.parameters(), max_norm=0.1)
    model(torch.ones(2, 5, dtype=torch.bfloat16)).sum().backward()
    grads = [whole(param.grad).float() for param in model.parameters()]
    optimizer.step()
    expected = fusedstep.get_total_norm(grads)
    torch.testing.assert_close(optimizer.grad_norm, expected, rtol=1e-6, atol=0)
    for param in model.parameters():
        assert optimizer.state[param]["exp_avg"].dtype == torch.float32
        assert optimizer.state[param]["exp_avg"].to_local().dtype == torch.float32


@check(2)
def policies_and_accumulated_gradients(ranks: Ranks) -> None:
    """Against torch's own step: gradients of another precision, on the host, and of two batches."""
    for policy in (
        {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)},
        {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)},
        {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    ):
        models = [fully_shard(make_model(torch.float32), **policy) for _ in range(2)]
        ours = fusedstep.AdamW(models[0].parameters(), max_norm=0.1)
        theirs = torch.optim.AdamW(models[1].parameters(), fused=True)
        for step in range(3):
            for model in models:
                generator = torch.Generator().manual_seed(10 * step + ranks.rank)
                for last in (False, True):
                    model.set_requires_gradient_sync(last)
                    x = torch.randn(4, 5, generator=generator)
                    model(x).float().square().mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(models[1].parameters(), 0.1).full_tensor()
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
            torch.testing.assert_close(ours.grad_norm, norm, rtol=1e-6, atol=0)
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(whole(p), whole(q))


@check(2)
def standalone_clip(ranks: Ranks) -> None:
    for norm_type in (2.0, 1.0, math.inf, 0.5, 3.0, -1.0, -math.inf):
        models = SideBySide(shard, ranks.rank, ranks.world)
        models.backward()
        params, alone = list(models.spread.parameters()), list(models.alone.parameters())
        total = fusedstep.get_total_norm([p.grad for p in params], norm_type)
        norm = fusedstep.clip_grad_norm_(params, 0.05, norm_type)
        expected = fusedstep.clip_grad_norm_(alone, 0.05, norm_type)
        assert torch.equal(norm, total)
        assert_same_on_all_ranks(norm, "norm")
        torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
        for p, q in zip(params, alone, strict=True):
            torch.testing.assert_close(whole(p.grad), q.grad, rtol=1e-11, atol=1e-11)
    with refuses("clip_grad_norm_", "norm_type", "not be 0 for DTensors", "0.0", ValueError):
        fusedstep.clip_grad_norm_(params, 1.0, 0)


@check(2)
def parameters_given_other_memory_between_steps(ranks: Ranks) -> None:
    models = SideBySide(shard, ranks.rank, ranks.world)
    models.step()
    models.spread._apply(torch.clone)  # as `.to()` does: the same parameters over other memory
    models.step()


@check(2)
def memory_that_a_sharded_model_leaves_is_free_at_once(ranks: Ranks) -> None:
    """A move such as `model.to()` gives sharded parameters new shards; state may be moved out."""
    model = fully_shard(make_model(torch.float32))
    optimizer = fusedstep.AdamW(model.parameters(), lr=0.1, max_norm=1.0)
    for step in range(3):
        model(torch.ones(4, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 1:
            left = [local(param) for param in model.parameters()]
            left += [local(v) for state in optimizer.state.values() for v in state.values()]
            memory = [StorageWeakRef(tensor.untyped_storage()) for tensor in left]
            del left
            model._apply(torch.clone)  # what to() calls, where no other device is needed
            for state in optimizer.state.values():
                for name, value in state.items():
                    state[name] = value.clone()
            del value
            assert all(storage.expired() for storage in memory)
    assert all(param.isfinite().all() for param in map(local, model.parameters()))
