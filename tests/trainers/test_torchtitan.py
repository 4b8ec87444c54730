"""torchtitan's container of optimizers with fused ones: the bits of a plain loop.

A subclass of the container names the class. `max_norm` is an argument of the factory, where one
optimizer holds the whole model; where a rank has several parts of it, each optimizer would clip by
the norm of its own, so leave the clip to torchtitan or to `fusedstep.clip_grad_norm_`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import fusedstep
from tests.support.optimizers import assert_same_run
from tests.support.training_loop import Batch, batches, loss_of, network
from tests.trainers.processes import in_processes

titan = pytest.importorskip(
    "torchtitan.components.optimizer", reason="needs the trainers extra: torchtitan"
)
utils = pytest.importorskip("torchtitan.distributed.utils")
Base: Any = titan.OptimizersContainer

RULE = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8}
GROUPS = (r"bias$", RULE | {"weight_decay": 0.0}), (r".*", RULE | {"weight_decay": 0.1})
WARMUP = 4  # steps of rising rates, more than a run has


class Container(Base):
    """All that a user has to write."""

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., Optimizer]:
        return getattr(fusedstep, name)


def container(
    parts: list[nn.Module], implementation: str = "fused", **options: Any
) -> tuple[Any, Any]:
    """The container and its schedules; `options` of the optimizer, such as max_norm."""
    config = Container.Config(
        param_groups=[
            titan.ParamGroupConfig(pattern=pattern, optimizer_name="AdamW", optimizer_kwargs=kwargs)
            for pattern, kwargs in GROUPS
        ],
        implementation=implementation,
        optimizer_factory_kwargs_by_name={"AdamW": options},
    )
    made = Container(config, model_parts=parts)
    rates = titan.LRSchedulersContainer.Config(warmup_steps=WARMUP)
    return made, rates.build(optimizers=made, training_steps=WARMUP)


def groups_by_hand(params: Any) -> list[dict[str, Any]]:
    """Biases, which have one dimension, then weights."""
    params = list(params)
    of_dims = [p for p in params if p.dim() == 1], [p for p in params if p.dim() > 1]
    return [{"params": of, **kwargs} for of, (_, kwargs) in zip(of_dims, GROUPS, strict=True)]


def loop(
    model: nn.Module,
    optimizer: Any,
    schedule: Any,
    data: list[Batch],
    clip: Callable[[], Any] = lambda: None,
) -> None:
    for batch in data:
        loss_of(model, batch).backward()
        clip()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def by_hand(
    model: nn.Module, data: list[Batch], clip: Callable[[], Any] = lambda: None, **options: Any
) -> Optimizer:
    optimizer = fusedstep.AdamW(groups_by_hand(model.parameters()), **options)
    loop(model, optimizer, LambdaLR(optimizer, lambda step: (step + 1) / WARMUP), data, clip)
    return optimizer


@pytest.mark.parametrize("options", [{"state_dtype": torch.bfloat16}, {}], ids=["bf16", "float32"])
def test_container_is_the_plain_loop(options: dict[str, Any]) -> None:
    """With the state that torchtitan creates in bfloat16 as well, if the optimizer keeps it so."""
    model, other = network(), network()
    implementation = "fused_opt_states_bf16" if options else "fused"
    optimizers, schedules = container([model], implementation, max_norm=0.5, **options)
    data = batches(WARMUP - 1)
    loop(model, optimizers, schedules, data)
    expected = by_hand(other, data, max_norm=0.5, **options)
    assert float(expected.grad_norm) > 0.5
    assert_same_run(optimizers.optimizers[0], expected)
    kept = optimizers.optimizers[0].state[model[0].weight]["exp_avg"].dtype
    assert kept == options.get("state_dtype", torch.float32)


@pytest.mark.parametrize("ours", [True, False], ids=["fusedstep's clip", "torchtitan's clip"])
def test_parts_of_a_pipeline_are_clipped_together(ours: bool) -> None:
    """Two optimizers on one rank; the norm is that of both if the gradients are clipped before."""
    clip = fusedstep.clip_grad_norm_ if ours else utils.clip_grad_norm_
    models, norms = [network() for _ in range(2)], [[], []]

    def clipping(of: int) -> Callable[[], None]:
        return lambda: norms[of].append(float(clip(list(models[of].parameters()), 0.5)))

    optimizers, schedules = container([nn.Sequential(models[0][i]) for i in (0, 2)])
    assert len(optimizers) == 2
    data = batches(WARMUP - 1)
    loop(models[0], optimizers, schedules, data, clipping(0))
    by_hand(models[1], data, clipping(1))
    assert all(map(torch.equal, *(model.parameters() for model in models)))
    assert norms[0] == norms[1]
    assert min(norms[0]) > 0.5


# --- two processes --------------------------------------------------------------------------------


def sharded() -> nn.Sequential:
    model = network()
    for module in (model[0], model[2], model):
        fully_shard(module)
    return model


def continued(folder: Path) -> None:
    """Saved and loaded by torch's checkpoint: into a container whose state must be made first."""
    mine = batches(2 * WARMUP)[dist.get_rank() :: 2]
    before, after = mine[: WARMUP // 2], mine[WARMUP // 2 : WARMUP - 1]
    model, other = sharded(), sharded()
    optimizers, schedules = container([model], max_norm=0.5)
    loop(model, optimizers, schedules, before)
    saved = {"model": model.state_dict(), "optimizer": optimizers.state_dict()}
    dcp.save(saved | {"lr": schedules.state_dict()}, checkpoint_id=folder)
    resumed, rates = container([other], max_norm=0.5)
    start = [param.to_local().clone() for param in other.parameters()]
    found = {"model": other.state_dict(), "optimizer": resumed.state_dict()}
    for param, value in zip(other.parameters(), start, strict=True):
        assert torch.equal(param.to_local(), value)  # the step that made the state moved nothing
    found |= {"lr": rates.state_dict()}
    dcp.load(found, checkpoint_id=folder)
    other.load_state_dict(found["model"])
    resumed.load_state_dict(found["optimizer"])
    rates.load_state_dict(found["lr"])
    loop(model, optimizers, schedules, after)
    loop(other, resumed, rates, after)
    assert_same_run(resumed.optimizers[0], optimizers.optimizers[0])
    expected = by_hand(sharded(), [*before, *after], max_norm=0.5)
    assert float(expected.grad_norm) > 0.5
    assert_same_run(resumed.optimizers[0], expected)


def test_shards_continue_bit_for_bit(tmp_path: Path) -> None:
    in_processes(2, continued, tmp_path)
