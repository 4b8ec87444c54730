"""norm_groups: ranks with other parameters, such as pipeline stages, and one norm over all."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Sequence
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import Shard

import fusedstep
from fusedstep.optim.distributed import device_type_of
from tests.distributed.placed import Twins, assert_same_norm, named_mesh, on
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check, of_all_ranks
from tests.support.optimizers import OPTIMIZERS
from tests.support.refusals import refuses

SHAPES = [(7, 3), (5,), (2, 4), (3,), (1, 1), (6, 2)]
EVERYWHERE = dist.group  # its WORLD is None until there are processes


def stage(rank: int, stages: int) -> list[int]:
    """The indices of a stage's parameters: of 6, uneven numbers for 4 stages."""
    return [i for i in range(len(SHAPES)) if i % stages == rank]


@check(2, 3, 4)
def stages(ranks: Ranks) -> None:
    """Bit for bit what one process with all parameters does, also where gradients are missing."""
    for norm_type in (2.0, 1.0, math.inf):
        twins = Twins(
            SHAPES, [None] * 6, stage(ranks.rank, ranks.world),
            norm_groups=[EVERYWHERE.WORLD], norm_type=norm_type, ema_decay=0.9,
        )  # fmt: skip
        twins.step(missing=range(1, 6))  # so at first only the first stage has gradients
        for missing in ([], [0], stage(1, ranks.world), []):
            twins.step(missing)


@check(2)
def every_optimizer_takes_groups(ranks: Ranks) -> None:
    here = stage(ranks.rank, ranks.world)
    for kind in OPTIMIZERS:
        twins = Twins(SHAPES, [None] * 6, here, optimizer=kind.ours, norm_groups=[EVERYWHERE.WORLD])
        for _ in range(3):
            twins.step()


@check(2, 3)
def muon_takes_groups(ranks: Ranks) -> None:
    """Matrices of one rank in stages, so that the second pass gets the norm, too."""
    shapes = [(7, 3), (2, 4), (3, 3), (4, 6)]
    for nonfinite in ("propagate", "skip"):
        twins = Twins(
            shapes, [None] * 4, [i for i in range(4) if i % ranks.world == ranks.rank],
            optimizer=fusedstep.Muon, norm_groups=[EVERYWHERE.WORLD], nonfinite=nonfinite,
        )  # fmt: skip
        twins.step()
        twins.step(missing=[0, 3])
    before = [param.detach().clone() for param in twins.spread]
    twins.set_gradients()
    if ranks.rank == 0:
        twins.spread[0].grad[0, 0] = math.nan
    twins.optimizer.step()
    assert all(map(torch.equal, twins.spread, before))


@check(2)
def the_device_of_a_message_is_the_groups(ranks: Ranks) -> None:
    """Not that of the tensors, of which a rank may have none."""
    assert device_type_of(EVERYWHERE.WORLD) == "cpu"
    for config, device in (
        ("cuda:nccl", "cuda"), ("cpu:gloo,cuda:nccl", "cuda"), ("cpu:gloo,cuda:gloo", "cpu"),
        ("cpu:gloo", "cpu"), ("cpu:mpi,cuda:mpi", "cpu"),
    ):  # fmt: skip
        with patch.object(dist, "get_backend_config", return_value=config):
            assert device_type_of(EVERYWHERE.WORLD) == device


@check(4)
def groups_along_two_dimensions(ranks: Ranks) -> None:
    """Two stages of two experts each: combined along one, then along the other."""
    grid = named_mesh(2, 2)
    groups = [grid.get_group(0), grid.get_group(1)]
    for order in (groups, groups[::-1]):
        twins = Twins(SHAPES, [None] * 6, stage(ranks.rank, 4), norm_groups=order)
        for _ in range(3):
            twins.step()


@check(4)
def stages_of_shards_and_replicas(ranks: Ranks) -> None:
    """FSDP in each of two stages: first over the mesh of the stage, then over the stages."""
    grid = named_mesh(2, 2)
    shards = on(grid["dim1"], Shard(0))
    where = [shards, shards, None, shards, shards, None]
    for of_stages in ([[0, 2, 4], [1, 3, 5]], [[2], [5]], [[0, 1], [5]]):
        here = of_stages[ranks.rank // 2]
        missing = [i for i in range(6) if not any(i in of_stage for of_stage in of_stages)]
        twins = Twins(SHAPES, where, here, norm_groups=[grid.get_group(0)])
        for _ in range(3):
            twins.step(missing)


@check(2, 3)
def functions_take_groups(ranks: Ranks) -> None:
    world = [EVERYWHERE.WORLD]
    for norm_type in (2.0, 1.0, math.inf, 0.5, 3.0, 0.0, -1.0, -math.inf):
        twins = Twins(SHAPES, [None] * 6, stage(ranks.rank, ranks.world))
        twins.set_gradients()
        expected = fusedstep.get_total_norm([p.grad for p in twins.alone], norm_type)
        grads = [param.grad for param in twins.spread]
        assert_same_norm(fusedstep.get_total_norm(grads, norm_type, groups=world), expected)
        fusedstep.clip_grad_norm_(twins.alone, 0.1, norm_type)
        found = fusedstep.clip_grad_norm_(twins.spread, 0.1, norm_type, groups=iter(world))
        assert_same_norm(found, expected)
        for i, grad in zip(twins.here, grads, strict=True):
            torch.testing.assert_close(grad, twins.alone[i].grad, rtol=1e-7, atol=0)


@check(2, 3)
def ranks_without_any_gradient_or_tensor(ranks: Ranks) -> None:
    """They take part in every norm, on the CPU, where gloo communicates; nobody waits in vain."""
    world = [EVERYWHERE.WORLD]
    params = [nn.Parameter(torch.ones(2, 2))]
    optimizer = fusedstep.AdamW(params, max_norm=1.0, norm_groups=world, ema_decay=0.5)
    last = ranks.rank == ranks.world - 1
    for has_gradient in (False, last, ranks.rank == 0, False):
        params[0].grad = torch.full((2, 2), 3.0) if has_gradient else None
        before = params[0].detach().clone()
        expected = torch.tensor(6.0 if any(of_all_ranks(has_gradient)) else 0.0)
        optimizer.step()
        assert torch.equal(params[0], before) == (not has_gradient)
        grads = [params[0].grad] if has_gradient else []
        norms = [
            optimizer.grad_norm,
            fusedstep.get_total_norm(grads, groups=world),
            fusedstep.clip_grad_norm_(params, 1e9, groups=world),
            fusedstep.clip_grad_norm_(params if has_gradient else [], 1e9, groups=world),
        ]
        for norm in norms:
            assert norm.device.type == "cpu"
            assert_same_norm(norm, expected)


@check(2, 3)
def what_is_not_finite_in_one_stage_stops_all(ranks: Ranks) -> None:
    for value in (math.nan, math.inf):
        twins = Twins(
            SHAPES, [None] * 6, stage(ranks.rank, ranks.world),
            norm_groups=[EVERYWHERE.WORLD], nonfinite="skip",
        )  # fmt: skip
        twins.step()
        before = [param.detach().clone() for param in twins.spread]
        twins.set_gradients()
        if ranks.rank == 1:
            twins.spread[0].grad[0] = value
        twins.optimizer.step()
        assert_same_on_all_ranks(twins.optimizer.grad_norm, "grad_norm")
        assert all(map(torch.equal, twins.spread, before))
        assert all(twins.optimizer.state[param]["step"] == 1 for param in twins.spread)
        twins.optimizer.nonfinite = "error"
        clip = partial(fusedstep.clip_grad_norm_, twins.spread, 1.0, error_if_nonfinite=True)
        for call in (twins.optimizer.step, partial(clip, groups=[EVERYWHERE.WORLD])):
            with pytest.raises(RuntimeError, match="nothing was changed"):
                call()
        assert all(map(torch.equal, twins.spread, before))


@check(2)
def nothing_is_communicated_without_a_norm(ranks: Ranks) -> None:
    """One rank need not even step."""
    params = [nn.Parameter(torch.ones(2))]
    params[0].grad = torch.ones(2)
    optimizer = fusedstep.AdamW(params, norm_groups=[EVERYWHERE.WORLD])
    if ranks.rank == 0:
        optimizer.step()
        assert optimizer.grad_norm is None


# --- what is refused ------------------------------------------------------------------------------


def refuses_groups(groups: object, at: str, must: str, got: str, kind: type[Exception]) -> None:
    """The optimizer and both functions refuse `groups`, before anything is written or sent."""
    params = [nn.Parameter(torch.ones(2))]
    params[0].grad = torch.ones(2)
    with refuses("AdamW", f"norm_groups{at}", must.format("norm_groups"), got, kind):
        fusedstep.AdamW(params, norm_groups=groups)
    with refuses("clip_grad_norm_", f"groups{at}", must.format("groups"), got, kind):
        fusedstep.clip_grad_norm_(params, 0.1, groups=groups)
    with refuses("get_total_norm", f"groups{at}", must.format("groups"), got, kind):
        fusedstep.get_total_norm([params[0].grad], groups=groups)
    assert torch.equal(params[0].grad, torch.ones(2))


@check(3)
def groups_that_are_none(ranks: Ranks) -> None:
    world, of_two = EVERYWHERE.WORLD, dist.new_group([0, 1])
    refuses_groups(world, "", "be a sequence of process groups", "ProcessGroup", TypeError)
    refuses_groups([world, 3], "[1]", "be a process group", "int", TypeError)
    refuses_groups([None], "[0]", "be a process group", "NoneType", TypeError)
    twice = r"share no other process with {}\[0\]: it would count twice"
    refuses_groups([world, world], "[1]", twice, r"ranks \[0, 1, 2\]", ValueError)
    part = "be a process group that this process is part of"
    if ranks.rank == 2:
        refuses_groups([of_two], "[0]", part, "new_group's result in other processes", ValueError)
    else:
        refuses_groups([world, of_two], "[1]", twice, r"ranks \[0, 1\]", ValueError)
    alone = [dist.new_group([rank]) for rank in range(3)][ranks.rank]
    refuses_groups([alone, alone], "[1]", twice, rf"ranks \[{ranks.rank}\]", ValueError)
    if ranks.rank < 2:
        dist.destroy_process_group(of_two)
        unlisted = "a group that torch.distributed does not list"
        refuses_groups([of_two], "[0]", part, unlisted, ValueError)


@check(2)
def groups_that_a_mesh_counts_already(ranks: Ranks) -> None:
    world = [EVERYWHERE.WORLD]
    twins = Twins(SHAPES[:2], [None, on(named_mesh(2), Shard(0))], norm_groups=world)
    twins.set_gradients()
    must = r"share no other process with the mesh of {}: it would count twice"
    got = r"ranks \[0, 1\]"
    with refuses("AdamW", "norm_groups[0]", must.format(r"params\[1\]"), got, ValueError):
        twins.optimizer.step()
    assert not twins.optimizer.state
    params = twins.spread
    in_two = fusedstep.AdamW(
        [{"params": params[:1]}, {"params": params[1:]}], max_norm=1.0, norm_groups=world
    )
    with refuses("AdamW", "norm_groups[0]", must.format(r"params\[1\]"), got, ValueError):
        in_two.step()
    with refuses("clip_grad_norm_", "groups[0]", must.format(r"parameters\[1\]"), got, ValueError):
        fusedstep.clip_grad_norm_(params, 1.0, groups=world)
    with refuses("get_total_norm", "groups[0]", must.format(r"tensors\[1\]"), got, ValueError):
        fusedstep.get_total_norm([param.grad for param in params], groups=world)


# --- copies, checkpoints --------------------------------------------------------------------------


@check(2)
def copies_have_the_same_groups_and_pickles_none(ranks: Ranks) -> None:
    world = EVERYWHERE.WORLD
    twins = Twins(SHAPES, [None] * 6, stage(ranks.rank, 2), norm_groups=[world])
    twins.step()
    optimizer = twins.optimizer
    copied = copy.deepcopy(optimizer)
    assert copied.norm_groups == optimizer.norm_groups == (world,)
    twins.set_gradients()
    mine = [param for group in copied.param_groups for param in group["params"]]
    for param, twin in zip(mine, twins.spread, strict=True):
        param.grad = twin.grad.clone()
    for one in (optimizer, copied, twins.reference):
        one.step()
    twins.check()
    assert_same_norm(copied.grad_norm, twins.reference.grad_norm)
    assert all(map(torch.equal, mine, twins.spread))
    must, got = r"be empty in an optimizer that is pickled \(.*\)", "1 of them"
    for save in (pickle.dumps, lambda one: torch.save(one, io.BytesIO())):
        with refuses("Options", "norm_groups", must, got, TypeError):
            save(optimizer)
    fresh = Twins(SHAPES, [None] * 6, stage(ranks.rank, 2), norm_groups=[world])
    fresh.optimizer.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    fresh.reference.load_state_dict(twins.reference.state_dict())
    for ours, theirs in ((fresh.spread, twins.spread), (fresh.alone, twins.alone)):
        for p, q in zip(ours, theirs, strict=True):
            p.data.copy_(q.data)
    fresh.steps = twins.steps
    fresh.step()


# --- GradScaler -----------------------------------------------------------------------------------


def scaled_step(
    twins: Twins, scaler: torch.amp.GradScaler, poisoned: bool, unscale: bool = False
) -> None:
    """One step with gradients that are scaled, and an infinite one on this rank if `poisoned`."""
    twins.set_gradients()
    for param in twins.spread:
        param.grad.mul_(scaler.get_scale())
    if poisoned:
        twins.spread[0].grad[0] = math.inf
    if unscale:
        scaler.unscale_(twins.optimizer)
    scaler.step(twins.optimizer)
    scaler.update()


def skips_of(ranks: Ranks, scaler: torch.amp.GradScaler, options: Sequence[str]) -> None:
    scaler.scale(torch.zeros(()))  # the scaler makes its tensors at the first use
    for nonfinite in options:
        twins = Twins(
            SHAPES, [None] * 6, stage(ranks.rank, ranks.world),
            norm_groups=[EVERYWHERE.WORLD], nonfinite=nonfinite,
        )  # fmt: skip
        for poisoned in (False, True, False):
            before = [param.detach().clone() for param in twins.spread]
            unscale = type(scaler) is not torch.amp.GradScaler
            scaled_step(twins, scaler, poisoned and ranks.rank == 0, unscale)
            if poisoned:
                assert not twins.optimizer.grad_norm.isfinite()
                assert all(map(torch.equal, twins.spread, before))
            else:
                twins.reference.step()
                twins.check()


@check(2, 3)
def what_one_scaler_finds_all_ranks_skip(ranks: Ranks) -> None:
    """GradScaler looks at its own process: only the rank with the infinity lowers the scale."""
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=100)
    skips_of(ranks, scaler, ["propagate", "skip", "error"])
    assert scaler.get_scale() == (8.0 if ranks.rank == 0 else 64.0)


@check(2, 3)
def scalers_that_share_what_they_find_keep_one_scale(ranks: Ranks) -> None:
    """The remedy: torch's scaler for shards, and unscale_, in which it communicates."""
    scaler = ShardedGradScaler(
        "cpu", init_scale=64.0, growth_interval=100, process_group=EVERYWHERE.WORLD
    )
    skips_of(ranks, scaler, ["propagate", "skip", "error"])
    assert scaler.get_scale() == 8.0


@check(2)
def a_scaler_of_a_rank_without_gradients(ranks: Ranks) -> None:
    """It found nothing, as the int 0. The step is skipped all the same, averages included."""
    param = nn.Parameter(torch.ones(2))
    optimizer = fusedstep.AdamW(
        [param], max_norm=1.0, norm_groups=[EVERYWHERE.WORLD], ema_decay=0.5
    )
    param.grad = torch.ones(2)
    optimizer.step()
    average = optimizer.ema_parameters()[0].clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(torch.zeros(()))
    param.grad = torch.tensor([math.inf, 1.0]) if ranks.rank == 0 else None
    scaler.step(optimizer)
    assert torch.equal(optimizer.ema_parameters()[0], average)
    optimizer.step()  # without a scaler, the NaN counts, also for an average that rests
    assert optimizer.ema_parameters()[0].isnan().any() == (ranks.rank == 0)
