"""torch.amp.GradScaler: the bits of a run without it, steps left out, the scale that follows."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

import fusedstep
from tests.support.optimizers import Kind, assert_same_run, every_kind, params_of
from tests.support.tensors import assert_same_bits
from tests.support.training_loop import Batch, batches, loss_of, network

Task = tuple[nn.Module, Optimizer]
by_the_user = pytest.mark.parametrize("unscale", [False, True], ids=["step", "unscale_ then step"])


def task(kind: Kind, device: torch.device | str = "cpu", **options: Any) -> Task:
    """The network and its optimizer."""
    net = network(device=device)
    return net, kind.ours(net.parameters(), **options)


def overflowing(batch: Batch) -> Batch:
    """The same inputs, and targets that make the loss and every gradient infinite or NaN."""
    return [batch[0], batch[1] * math.inf]


def run(
    task: Task,
    data: Sequence[Batch],
    scaler: GradScaler | None = None,
    unscale: bool = False,
    clip: float | None = None,
) -> None:
    """A step for each batch; only those of such batches leave the parameters as they were."""
    net, optimizer = task
    scaler = scaler or GradScaler("cpu", enabled=False)
    params = params_of(optimizer)
    for batch in data:
        optimizer.zero_grad()
        scaler.scale(loss_of(net, [tensor.to(params[0].device) for tensor in batch])).backward()
        before = [param.detach().clone() for param in params]
        if unscale:
            scaler.unscale_(optimizer)
        if clip is not None:
            fusedstep.clip_grad_norm_(params, clip)
        scaler.step(optimizer)
        scaler.update()
        for param, old in zip(params, before, strict=True):
            assert torch.equal(param, old) == bool(batch[1].isinf().all())


@by_the_user
@pytest.mark.parametrize("max_norm", [None, 0.1])
@every_kind
def test_loss_scale_changes_no_bit(
    kind: Kind, max_norm: float | None, unscale: bool, device: torch.device
) -> None:
    plain, scaled = (task(kind, device, max_norm=max_norm) for _ in range(2))
    scaler = GradScaler(device.type, init_scale=1024.0, growth_interval=2)
    run(plain, batches(4))
    run(scaled, batches(4), scaler, unscale)
    assert_same_run(scaled[1], plain[1])
    assert scaler.get_scale() == 4096.0  # it grew twice


@by_the_user
@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "error"])
@every_kind
def test_overflow_is_left_out_and_lowers_the_scale(
    kind: Kind, nonfinite: str, unscale: bool, device: torch.device
) -> None:
    scaled, plain = (task(kind, device, max_norm=1.0, nonfinite=nonfinite) for _ in range(2))
    scaler = GradScaler(device.type, init_scale=1024.0)
    a, b, c = batches(3)
    run(
        scaled,
        [overflowing(a), a, overflowing(b), b, overflowing(c), overflowing(c), c],
        scaler,
        unscale,
    )
    run(plain, [a, b, c])
    assert_same_run(scaled[1], plain[1])
    assert scaler.get_scale() == 64.0


@every_kind
def test_gradients_clipped_by_the_user_after_unscale(kind: Kind) -> None:
    plain, scaled = task(kind), task(kind)
    run(plain, batches(3), clip=0.1)
    run(scaled, batches(3), GradScaler("cpu", init_scale=1024.0), unscale=True, clip=0.1)
    assert_same_run(scaled[1], plain[1])


@every_kind
def test_overflow_of_one_optimizer_is_not_that_of_another(kind: Kind) -> None:
    tasks, plain = [task(kind) for _ in range(2)], task(kind)
    scaler = GradScaler("cpu", init_scale=1024.0)
    first, second = batches(2)
    for data in ((first, first), (second, overflowing(second))):
        for (net, optimizer), batch in zip(tasks, data, strict=True):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, batch)).backward()
            scaler.step(optimizer)
        scaler.update()
    run(plain, [first])
    assert_same_run(tasks[1][1], plain[1])
    run(plain, [second])
    assert_same_run(tasks[0][1], plain[1])
    assert scaler.get_scale() == 512.0


@every_kind
def test_a_copy_still_divides_the_scale_out_itself(kind: Kind) -> None:
    net, optimizer = copy.deepcopy(task(kind))
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(net, batches(1)[0])).backward()
    scaled = [param.grad.clone() for param in net.parameters()]
    scaler.step(optimizer)
    for param, grad in zip(net.parameters(), scaled, strict=True):
        assert_same_bits(param.grad, grad, "what the optimizer, not the scaler, divides")
    plain = task(kind)
    run(plain, batches(1))
    assert_same_run(optimizer, plain[1])
