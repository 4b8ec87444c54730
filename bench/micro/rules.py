"""The optimizers that are timed, each with what it is timed against, and the modes of their state.

Against is torch's best documented path: fused, or foreach for RMSprop, which torch has not fused.
torch has no Lion at all: ours is timed against the foreach functions below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fusedstep


class ForeachLion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023 (https://arxiv.org/abs/2302.06675) as torch would write it.

    params: float tensors; lr, betas, weight_decay as in fusedstep.Lion.
    """

    def __init__(
        self,
        params: list[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params, lr, (beta1, beta2) = group["params"], group["lr"], group["betas"]
            grads = [param.grad for param in params]
            for param in params:
                if not self.state[param]:
                    self.state[param]["exp_avg"] = torch.zeros_like(param)
            averages = [self.state[param]["exp_avg"] for param in params]
            updates = torch._foreach_lerp(averages, grads, 1 - beta1)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-lr)
            torch._foreach_lerp_(averages, grads, 1 - beta2)


@dataclass(frozen=True)
class Rule:
    """An optimizer of ours and its opponent, made with the same `arguments`."""

    name: str  # the stem of its files
    ours: Callable[..., torch.optim.Optimizer]
    theirs: Callable[..., torch.optim.Optimizer]
    against: str  # theirs, for people
    states: int  # numbers kept for each parameter
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.ours.__name__


def fused(name: str, title: str, states: int, **arguments: Any) -> Rule:
    """A rule whose class of this title torch has fused."""
    theirs = partial(getattr(torch.optim, title), fused=True)
    return Rule(name, getattr(fusedstep, title), theirs, "torch, fused", states, arguments)


RMSPROP = Rule(
    "rmsprop",
    fusedstep.RMSprop,
    partial(torch.optim.RMSprop, foreach=True),
    "torch, foreach",
    states=3,
    arguments={"momentum": 0.9, "centered": True},
)
LION = Rule(
    "lion",
    fusedstep.Lion,
    ForeachLion,
    "foreach Lion, not torch's",
    states=1,
    arguments={"weight_decay": 0.1},
)
ADAMW = fused("adamw", "AdamW", 2, weight_decay=0.1)
RULES = {
    rule.name: rule
    for rule in (
        ADAMW,
        fused("adam", "Adam", 2),
        RMSPROP,
        fused("sgd", "SGD", 1, momentum=0.9),
        fused("adagrad", "Adagrad", 1),
        LION,
    )
}


@dataclass(frozen=True)
class Mode:
    """How state is stored: the option that asks for it, and its bytes for each number."""

    name: str
    bytes: float
    options: Mapping[str, Any] = field(default_factory=dict)


FLOAT32 = Mode("float32", 4)
MODES = {
    mode.name: mode
    for mode in (
        FLOAT32,
        Mode("bfloat16", 2, {"state_dtype": torch.bfloat16}),
        Mode("int8", 1 + 4 / 128, {"state_dtype": "int8"}),  # and a float32 for 128 elements
    )
}
