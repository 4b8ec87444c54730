"""torch.optim.swap_in_optimizer_params_and_state with shards: steps on others, and back."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch.distributed.tensor import distribute_tensor

from fusedstep.optim.distributed import local, placed_like
from tests.distributed.ranks import Ranks, check
from tests.distributed.side_by_side import make_model, shard
from tests.support.optimizers import OPTIMIZERS, params_of
from tests.support.tensors import assert_same_bits

# New in torch 2.14.
WORLDS = (2,) if hasattr(torch.optim, "swap_in_optimizer_params_and_state") else ()
MODES: list[tuple[dict[str, Any], torch.dtype]] = [
    ({}, torch.float32),
    ({"state_dtype": torch.bfloat16, "ema_decay": 0.5}, torch.float32),
    ({"master": "remainder"}, torch.bfloat16),
]


def step(optimizer: torch.optim.Optimizer, number: int) -> None:
    """Along gradients that depend on the number alone."""
    generator = torch.Generator().manual_seed(number)
    for param in params_of(optimizer):
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = distribute_tensor(grad, param.device_mesh, param.placements)
    optimizer.step()


def assert_same(optimizer: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    """Parameters and all state, bit for bit."""
    for p, q in zip(params_of(optimizer), params_of(expected), strict=True):
        assert_same_bits(local(p), local(q), "a parameter")
        assert optimizer.state[p].keys() == expected.state[q].keys()
        for name, value in optimizer.state[p].items():
            assert_same_bits(local(value), local(expected.state[q][name]), name)


@check(*WORLDS)
def shards_are_swapped_in(ranks: Ranks) -> None:
    """Inside, the steps of a run that goes on; afterwards, those of one that waits meanwhile."""
    for kind, (options, dtype) in itertools.product(OPTIMIZERS, MODES):
        runs = [
            kind.ours(shard(make_model(dtype)).parameters(), max_norm=1.0, **options)
            for _ in range(3)
        ]
        for one in runs:
            for number in range(2):
                step(one, number)
        optimizer, waits, goes_on = runs
        others = {
            str(i): placed_like(param, local(param).detach().clone()).requires_grad_()
            for i, param in enumerate(params_of(optimizer))
        }
        state_dict = copy.deepcopy(optimizer.state_dict())
        with torch.optim.swap_in_optimizer_params_and_state(optimizer, others, state_dict):
            for number in (2, 3):
                step(optimizer, number)
                step(goes_on, number)
            assert_same(optimizer, goes_on)
        assert_same(optimizer, waits)
        for one in (optimizer, waits):
            step(one, 4)
        assert_same(optimizer, waits)
