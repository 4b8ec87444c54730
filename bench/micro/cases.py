"""The sets of tensors that are timed, with the bytes that no implementation can avoid moving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import torch

Shape = tuple[int, ...]


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
        """Of a clip and a step: the gradient read for the norm; then the gradient, the parameter
        and its states read; parameter and states written. AdamW's 2 of float32, also for narrower
        parameters: 32 bytes for float32 parameters."""
        return 4 * self.parameter_bytes + round(2 * states * state_bytes * self.parameters)


def gpt2_shapes(
    layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024
) -> tuple[Shape, ...]:
    """The 148 parameters of GPT-2 124M: Radford et al. 2019, as in OpenAI's published weights."""
    block = [
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
MODE_TARGETS = {"bfloat16": 1.2, "int8": 1.4}
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
    # Not like for like: torch keeps the moments of these in bfloat16, we in float32.
    Case("billion-bf16", "1e9 bfloat16 parameters", BILLION, torch.bfloat16),
    Case("small", "400 small tensors", ((64, 64), (64,)) * 200),
    Case("mlp", "MLP, 6 tensors", mlp_shapes(784, 512, 256, 10)),
)


def cases_for(device: torch.device) -> tuple[Case, ...]:
    return GPU_CASES if device.type == "cuda" else CPU_CASES
