"""A training loop that takes milliseconds: a small network, its data, and the usual step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from tests.support.optimizers import Kind

STEPS = 6
Batch = list[Tensor]  # inputs [4, 8] and targets [4, 1]
Step = Callable[[nn.Module, Optimizer, Batch], Any]


def network(**options: Any) -> nn.Sequential:
    """The same weights every time; `options` are those of `nn.Module.to`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    return net.to(**options) if options else net


def examples(count: int) -> tuple[Tensor, Tensor]:
    """`count` inputs [count, 8] and their targets [count, 1], the same every time."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 8, generator=generator)
    return inputs, inputs.square().sum(1, keepdim=True)


def batches(count: int) -> list[Batch]:
    """The examples four at a time, in order."""
    return [list(pair) for pair in zip(*(t.split(4) for t in examples(4 * count)), strict=True)]


def loss_of(net: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error."""
    inputs, targets = batch
    return F.mse_loss(net(inputs), targets)


def plain_step(net: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
    """As most loops have it."""
    optimizer.zero_grad()
    loss_of(net, batch).backward()
    optimizer.step()


def run(
    net: nn.Module,
    optimizer: Optimizer,
    step: Step = plain_step,
    data: Sequence[Batch] | None = None,
) -> Optimizer:
    """The optimizer after a step for every batch."""
    for batch in data or batches(STEPS):
        step(net, optimizer, batch)
    return optimizer


def plain_run(kind: Kind) -> Optimizer:
    """The usual oracle: the plain loop, clipping, from the network's first weights."""
    net = network()
    return run(net, kind.ours(net.parameters(), max_norm=1.0))
