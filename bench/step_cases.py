"""What the benchmark of the step times: sets of tensors, optimizers, storage modes, both sides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

import fusedstep
from bench.measure import Call
from fusedstep import _C

MAX_NORM = 1.0
Shape = tuple[int, ...]

# --- sets of tensors ---


@dataclass(frozen=True)
class Case:
    """Tensors of these shapes, with gradients of the same dtype."""

    name: str
    title: str
    shapes: tuple[Shape, ...]
    dtype: torch.dtype = torch.float32
    # Wanted ratios of the other side's time to ours, by rule, or by mode where state is smaller.
    targets: Mapping[str, float] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes)

    @property
    def parameter_bytes(self) -> int:
        return self.parameters * self.dtype.itemsize

    def floor_bytes(self, states: int = 2, state_bytes: float = 4) -> int:
        """The bytes that no clip and step can avoid moving.

        The gradient is read for the norm; then gradient, parameter and states are read; parameter
        and states are written. State is float32 for narrower parameters too, so the default,
        AdamW's two states, gives 32 bytes for a float32 parameter.
        """
        return 4 * self.parameter_bytes + round(2 * states * state_bytes * self.parameters)


def gpt2_shapes(
    layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024
) -> tuple[Shape, ...]:
    """The 148 parameters of GPT-2 124M: Radford et al. 2019, as in OpenAI's published weights."""
    block: list[Shape] = [
        *[(width,), (width,)],  # first LayerNorm: weight, bias
        *[(width, 3 * width), (3 * width,), (width, width), (width,)],  # attention: in, out
        *[(width,), (width,)],  # second LayerNorm
        *[(width, 4 * width), (4 * width,), (4 * width, width), (width,)],  # MLP: in, out
    ]
    return ((vocabulary, width), (context, width), *block * layers, (width,), (width,))


def mlp_shapes(*widths: int) -> tuple[Shape, ...]:
    """Weight and bias of each layer."""
    return tuple(s for wide, narrow in pairwise(widths) for s in ((narrow, wide), (narrow,)))


GPT2_TARGETS = {"adamw": 1.3, "rmsprop": 2.5, "sgd": 1.3, "adagrad": 1.3}
MODE_TARGETS = {"bfloat16": 0.95, "int8": 0.8}  # a CPU's arithmetic is as long as its memory
SMALL_TARGETS = dict.fromkeys(("adamw", "adam", "rmsprop", "sgd", "adagrad"), 8.0)
CPU_CASES = (
    Case("gpt2", "GPT-2 124M, 148 tensors", gpt2_shapes(), targets=GPT2_TARGETS | MODE_TARGETS),
    Case("small", "400 small tensors", ((64, 64), (64,)) * 200, targets=SMALL_TARGETS),
    Case("mlp", "MLP, 6 tensors", mlp_shapes(784, 512, 256, 10), targets={"adamw": 3.0}),
)
BILLION = ((10_000, 1000),) * 100
GPU_CASES = (
    Case("billion", "1e9 parameters", BILLION, targets={"adamw": 1.2}),
    Case("gpt2", "GPT-2 124M, 148 tensors", gpt2_shapes()),
    Case("many", "2000 tensors of 4096", ((4096,),) * 2000, targets={"adamw": 5.0}),
    # Not like for like: torch keeps the moments of these in bfloat16, fusedstep in float32.
    Case("billion-bf16", "1e9 bfloat16 parameters", BILLION, torch.bfloat16),
    Case("small", "400 small tensors", ((64, 64), (64,)) * 200),
    Case("mlp", "MLP, 6 tensors", mlp_shapes(784, 512, 256, 10)),
)


def cases_for(device: torch.device) -> tuple[Case, ...]:
    """The cases that are timed on this device."""
    return GPU_CASES if device.type == "cuda" else CPU_CASES


# --- optimizers, each with the one that it is timed against ---


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
    def step(self) -> None:  # type: ignore[override]  # without a closure
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
    """An optimizer of fusedstep and its opponent, made with the same `arguments`.

    The opponent is torch's best documented path: fused, or foreach where torch has not fused
    (RMSprop, Adagrad on a GPU). torch has no Lion at all: fusedstep's is timed against ForeachLion.
    """

    name: str  # the stem of its files
    ours: Callable[..., torch.optim.Optimizer]
    theirs: Callable[..., torch.optim.Optimizer]
    against: str  # the opponent in the table
    states: int  # numbers kept for each parameter
    title: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def fused(name: str, title: str, states: int, **arguments: Any) -> Rule:
    """A rule whose class of this title torch has fused."""
    theirs = partial(getattr(torch.optim, title), fused=True)
    return Rule(name, getattr(fusedstep, title), theirs, "torch, fused", states, title, arguments)


def torch_adagrad(params: list[Tensor], **arguments: Any) -> torch.optim.Optimizer:
    """Torch's fastest: fused on a CPU; on a GPU it has only foreach, and refuses fused."""
    fastest = "foreach" if params[0].is_cuda else "fused"
    return torch.optim.Adagrad(params, **{fastest: True}, **arguments)


ADAMW = fused("adamw", "AdamW", 2, weight_decay=0.1)
RULES = {
    rule.name: rule
    for rule in (
        ADAMW,
        fused("adam", "Adam", 2),
        Rule(
            "rmsprop",
            fusedstep.RMSprop,
            partial(torch.optim.RMSprop, foreach=True),
            against="torch, foreach",
            states=3,
            title="RMSprop",
            arguments={"momentum": 0.9, "centered": True},
        ),
        fused("sgd", "SGD", 1, momentum=0.9),
        Rule(
            "adagrad",
            fusedstep.Adagrad,
            torch_adagrad,
            against="torch, fused or foreach",
            states=1,
            title="Adagrad",
        ),
        Rule(
            "lion",
            fusedstep.Lion,
            ForeachLion,
            against="foreach Lion, not torch's",
            states=1,
            title="Lion",
            arguments={"weight_decay": 0.1},
        ),
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
        Mode("int8", 1 + 4 / _C.BLOCK, {"state_dtype": "int8"}),  # and a float32 for each block
    )
}

# --- the two sides ---


def make_params(case: Case, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Random parameters; their gradients have about twice the norm that they are clipped to."""
    generator = torch.Generator(device).manual_seed(seed)
    scale = 2 * MAX_NORM / math.sqrt(case.parameters)
    params = []
    for shape in case.shapes:
        param, grad = (
            torch.empty(shape, dtype=case.dtype, device=device).normal_(generator=generator)
            for _ in range(2)
        )
        param.grad = grad.mul_(scale)
        params.append(param)
    return params


def torch_step(params: list[Tensor], rule: Rule = ADAMW) -> Call:
    """The way PyTorch documents: clip, which rewrites the gradients, then the step."""
    optimizer = rule.theirs(params, **rule.arguments)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return step


def fused_step(params: list[Tensor], rule: Rule = ADAMW, mode: Mode = FLOAT32) -> Call:
    """The same in one call."""
    return rule.ours(params, **rule.arguments, max_norm=MAX_NORM, **mode.options).step
