"""What is refused of DTensors, before any rank changes or waits for anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import fusedstep
from tests.distributed.ranks import Ranks, check
from tests.distributed.side_by_side import make_model, shard, whole
from tests.support.refusals import refuses


def parameter(mesh: DeviceMesh, *placements: Any, rows: int = 6) -> nn.Parameter:
    """With a gradient of ones."""
    param = nn.Parameter(distribute_tensor(torch.zeros(rows, 2), mesh, placements))
    param.grad = distribute_tensor(torch.ones(rows, 2), mesh, placements)
    return param


@check(2)
def parameters_of_a_mesh_without_this_process(ranks: Ranks) -> None:
    mesh = DeviceMesh("cpu", [0])
    param = nn.Parameter(distribute_tensor(torch.zeros(6, 2), mesh, [Shard(0)]))
    optimizer = fusedstep.AdamW([param], max_norm=1.0)
    if ranks.rank == 0:
        optimizer.step()
        return
    must, got = "be on a mesh that this process is part of", ".*DeviceMesh.*"
    with refuses("AdamW", "params[0]", must, got, ValueError):
        optimizer.step()
    with refuses("clip_grad_norm_", "parameters[0]", must, got, ValueError):
        fusedstep.clip_grad_norm_([param], 1.0)
    with refuses("get_total_norm", "tensors[0]", must, got, ValueError):
        fusedstep.get_total_norm([param])


@check(2)
def parameters_that_are_sums(ranks: Ranks) -> None:
    mesh = init_device_mesh("cpu", (ranks.world,))
    param = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    param.grad = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    must, got = "be sharded or replicated", r".*Partial.*"
    with refuses("AdamW", "params[0]", must, got, ValueError):
        fusedstep.AdamW([param]).step()
    with refuses("clip_grad_norm_", "parameters[0]", must, got, ValueError):
        fusedstep.clip_grad_norm_([param], 1.0)


@check(2)
def gradients_and_state_from_elsewhere(ranks: Ranks) -> None:
    mesh = init_device_mesh("cpu", (ranks.world,))
    other = init_device_mesh("cpu", (1, ranks.world), mesh_dim_names=("a", "b"))
    param = parameter(mesh, Shard(0))
    optimizer = fusedstep.AdamW([param], max_norm=1.0)
    optimizer.step()
    before = whole(param).clone()
    kept = param.grad
    param.grad = distribute_tensor(torch.ones(6, 2), other, [Replicate(), Shard(0)])
    must = "be on its parameter's mesh .*"
    with refuses("AdamW", "params[0].grad", must, ".*DeviceMesh.*", ValueError):
        optimizer.step()
    with refuses("clip_grad_norm_", "parameters[0].grad", must, ".*DeviceMesh.*", ValueError):
        fusedstep.clip_grad_norm_([param], 1.0)
    param.grad = kept
    state = optimizer.state[param]
    first = state["exp_avg"]
    state["exp_avg"] = whole(first)
    where = "state of params[0]['exp_avg']"
    with refuses("AdamW", where, "be a DTensor, as its parameter", "a plain tensor", TypeError):
        optimizer.step()
    state["exp_avg"] = first.redistribute(placements=[Replicate()])
    with refuses("AdamW", where, "be placed as its parameter, .*", ".*Replicate.*", ValueError):
        optimizer.step()
    state["exp_avg"] = first
    assert torch.equal(whole(param), before)
    optimizer.step()
    assert not torch.equal(whole(param), before)


@check(2)
def torch_own_step_still_takes_what_it_takes(ranks: Ranks) -> None:
    models = [shard(make_model()) for _ in range(2)]
    optimizers = [
        fusedstep.AdamW(models[0].parameters(), foreach=True),
        torch.optim.AdamW(models[1].parameters(), foreach=True),
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        model(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
        optimizer.step()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(whole(p), whole(q))


@check(2)
def norms_of_slices_of_the_older_fsdp(ranks: Ranks) -> None:
    """A rank would take its slice's norm for the whole's; a step without a norm is right."""
    for names in (False, True):
        here = {"device_id": torch.device("cpu"), "use_orig_params": names}
        model = FullyShardedDataParallel(make_model(), **here)
        optimizer = fusedstep.AdamW(model.parameters(), max_norm=1.0)
        model(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
        before = [param.detach().clone() for param in model.parameters()]
        must = "be a DTensor .*"
        with refuses("AdamW", "params[0]", must, ".*", TypeError):
            optimizer.step()
        assert all(map(torch.equal, model.parameters(), before))
        optimizer.max_norm = None
        optimizer.step()
        assert not all(map(torch.equal, model.parameters(), before))
