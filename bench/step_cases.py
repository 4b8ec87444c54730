"""What the step is timed on: models' shapes, rules, forms of state, and fusedstep's side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import fusedstep
from bench.case import MAX_NORM, Shape, Side, Work, kept_bytes, side_of
from bench.measure import Call
from fusedstep import _C

# --- the parameters of models, by their published architectures ---


def mlp_shapes(*widths: int) -> tuple[Shape, ...]:
    """Weight and bias of each layer."""
    return tuple(s for wide, narrow in pairwise(widths) for s in ((narrow, wide), (narrow,)))


def resnet50_shapes() -> tuple[Shape, ...]:
    """The 161 parameters of ResNet-50: He et al. 2015, table 1, as torchvision builds it."""

    def convolution(out: int, into: int, size: int) -> list[Shape]:
        return [(out, into, size, size), (out,), (out,)]  # and batch normalization: weight, bias

    shapes, into = convolution(64, 3, 7), 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += convolution(width, into, 1) + convolution(width, width, 3)
            shapes += convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, into, 1)  # of the shortcut
            into = 4 * width
    return (*shapes, (1000, into), (1000,))


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


def llama_shapes() -> tuple[Shape, ...]:
    """The 146 parameters of Llama-3.2-1B, by the config.json that Meta published with it."""
    width, inner, keys = 2048, 8192, 8 * 64  # 8 heads of keys and values
    block: list[Shape] = [
        *[(width, width), (keys, width), (keys, width), (width, width)],  # attention: q, k, v, out
        *[(inner, width), (inner, width), (width, inner)],  # MLP: gate, up, down
        *[(width,), (width,)],  # both norms
    ]
    return ((128256, width), *block * 16, (width,))  # the last layer is the embedding


def olmoe_layer() -> tuple[Shape, ...]:
    """The 201 parameters of one of the 16 layers of OLMoE-1B-7B: Muennighoff et al. 2024."""
    width, inner = 2048, 1024
    expert: list[Shape] = [(inner, width), (inner, width), (width, inner)]  # gate, up, down
    attention: list[Shape] = [(width, width)] * 4 + [(width,)] * 2  # and norms of q and k
    experts = 64
    return (*attention, (experts, width), *expert * experts, (width,), (width,))


def matrices_of(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Those that Muon takes."""
    return tuple(shape for shape in shapes if len(shape) == 2)


MLP_WIDTHS = (784, 512, 256, 10)
MLP = mlp_shapes(*MLP_WIDTHS)
SMALL = ((64, 64), (64,)) * 200
BILLION = ((10_000, 1000),) * 100
SETS: dict[str, Callable[[], tuple[Shape, ...]]] = {
    "mlp": lambda: MLP,
    "400-small": lambda: SMALL,
    "resnet50": resnet50_shapes,
    "gpt2": gpt2_shapes,
    "llama-3.2-1b": llama_shapes,
    "olmoe-layer": olmoe_layer,
}

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
    """An optimizer of fusedstep and torch's, made with the same `arguments`.

    torch's is its best documented path: fused, or foreach where torch has not fused (RMSprop;
    Adagrad on a GPU). torch has no Lion: ForeachLion stands for it.
    """

    name: str  # the stem of its files
    ours: Callable[..., torch.optim.Optimizer]
    torchs: Callable[..., torch.optim.Optimizer]  # the class
    against: str  # the name of torch's side
    averages: int  # numbers kept for each parameter with the fewest options
    title: str
    arguments: Mapping[str, Any]
    fastest: Mapping[str, bool] = field(default_factory=dict)  # torch's option for that path

    def theirs(self, params: list[Tensor], **arguments: Any) -> torch.optim.Optimizer:
        """Torch's, by that path."""
        fastest = self.fastest
        if self.torchs is torch.optim.Adagrad and params[0].is_cuda:  # which refuses fused there
            fastest = {"foreach": True}
        return self.torchs(params, **fastest, **arguments)

    def states(self, arguments: Mapping[str, Any]) -> int:
        """Numbers kept for each parameter."""
        return self.averages + sum(bool(arguments.get(name)) for name in ("momentum", "centered"))


def fused(name: str, title: str, averages: int, **arguments: Any) -> Rule:
    """A rule whose class of this title torch has fused."""
    ours, torchs = (getattr(module, title) for module in (fusedstep, torch.optim))
    against, fastest = "torch, fused", {"fused": True}
    return Rule(name, ours, torchs, against, averages, title, arguments, fastest)


ADAMW = fused("adamw", "AdamW", 2, lr=1e-3, weight_decay=0.1)
MUON = Rule(
    "muon",
    fusedstep.Muon,
    torch.optim.Muon,
    against="torch",
    averages=1,
    title="Muon",
    arguments={"lr": 0.02, "weight_decay": 0.1},
)
RULES = {
    rule.name: rule
    for rule in (
        ADAMW,
        fused("adam", "Adam", 2, lr=1e-3),
        Rule(
            "rmsprop",
            fusedstep.RMSprop,
            torch.optim.RMSprop,
            against="torch, foreach",
            averages=1,
            title="RMSprop",
            arguments={"lr": 1e-3, "momentum": 0.9, "centered": True},
            fastest={"foreach": True},
        ),
        # The rate moves parameters by more than rounding does: a check can see a wrong update.
        fused("sgd", "SGD", 0, lr=1.0, momentum=0.9),
        Rule(
            "adagrad",
            fusedstep.Adagrad,
            torch.optim.Adagrad,
            against="torch, fused or foreach",
            averages=1,
            title="Adagrad",
            arguments={"lr": 1e-2},
            fastest={"fused": True},
        ),
        Rule(
            "lion",
            fusedstep.Lion,
            ForeachLion,
            against="torch, foreach Lion",
            averages=1,
            title="Lion",
            arguments={"lr": 1e-3, "weight_decay": 0.1},
        ),
        MUON,
    )
}


@dataclass(frozen=True)
class Mode:
    """How state is stored: the option that asks for it, and its bytes for each number."""

    name: str
    bytes: float
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32  # of the parameters


FLOAT32 = Mode("float32", 4)
MODES = {
    mode.name: mode
    for mode in (
        FLOAT32,
        Mode("bfloat16", 2, {"state_dtype": torch.bfloat16}),
        Mode("int8", 1 + 4 / _C.BLOCK, {"state_dtype": "int8"}),  # and a float32 for each block
        Mode("master", 4, {"master": "float32"}, torch.bfloat16),
    )
}


def least_bytes(work: Work) -> int:
    """What no implementation can avoid moving.

    Clipping reads the gradient once, for the norm. Then gradient, parameter and states are read;
    parameter and states are written. A bfloat16 parameter and its float32 master are together four
    bytes, for the parameter is the upper half of the master but for its rounding. State is float32
    for narrower parameters too, so AdamW's two states give 32 bytes for a float32 parameter, with
    the clip.
    """
    size, mode = work.dtype.itemsize, MODES[work.mode]
    gradient = size * (2 if work.clip else 1)
    parameter = 2 * (4 if work.mode == "master" else size)
    states = 2 * mode.bytes * RULES[work.rule].states(work.arguments)
    return round(work.elements * (gradient + parameter + states))


def held_bytes(work: Work) -> int:
    """Of one side: parameters, gradients, float32 state and master, a temporary copy."""
    states = RULES[work.rule].states(work.arguments) + (work.mode == "master")
    return work.elements * (3 * work.dtype.itemsize + 4 * states)


def newton_schulz_operations(shapes: tuple[Shape, ...], steps: int = 5) -> int:
    """Of Muon's products: X Xᵀ and its square, of which symmetry spares half, and one with X."""
    sizes = [(min(shape), max(shape)) for shape in shapes]
    return sum(steps * (m * m * n + m**3 + 2 * m * m * n) for m, n in sizes)


# --- the two sides that need no library but torch ---


def torch_step(params: list[Tensor], rule: Rule = ADAMW) -> Call:
    """The way PyTorch documents: clip, which rewrites the gradients, then the best step."""
    optimizer = rule.theirs(params, **rule.arguments)

    def both() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return both


def fused_step(params: list[Tensor], rule: Rule = ADAMW, mode: Mode = FLOAT32) -> Call:
    """The same in one call."""
    return rule.ours(params, **rule.arguments, max_norm=MAX_NORM, **mode.options).step


def our_side(work: Work, device: torch.device) -> Iterator[Side]:
    """fusedstep's, made when it is asked for."""
    params = work.params(device)
    clip = {"max_norm": MAX_NORM} if work.clip else {}
    options = MODES[work.mode].options
    optimizer = RULES[work.rule].ours(params, **work.arguments, **clip, **options)
    kept = partial(kept_bytes, optimizer.state)
    yield side_of("fusedstep", optimizer.step, device, lambda: params, kept)
