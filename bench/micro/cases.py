"""The sets of tensors that are timed, with the bytes that no implementation can avoid moving."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch

Shape = tuple[int, ...]
STATE_BYTES = 4  # of one moment of one parameter: float32, also for narrower parameters


@dataclass(frozen=True)
class Case:
    """Tensors of these shapes, with gradients of the same dtype."""

    name: str
    title: str
    shapes: tuple[Shape, ...]
    dtype: torch.dtype = torch.float32
    target: float | None = None  # wanted ratio of torch's time to ours

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes)

    @property
    def parameter_bytes(self) -> int:
        return self.parameters * self.dtype.itemsize

    @property
    def floor_bytes(self) -> int:
        """Of a clip and an AdamW step: the gradient read for the norm; then the gradient, the
        parameter and two moments read; parameter and moments written. 32 bytes for float32."""
        return 4 * self.parameter_bytes + 4 * STATE_BYTES * self.parameters


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


CPU_CASES = (
    Case("gpt2", "GPT-2 124M, 148 tensors", gpt2_shapes(), target=1.3),
    Case("small", "400 small tensors", ((64, 64), (64,)) * 200, target=8.0),
    Case("mlp", "MLP, 6 tensors", mlp_shapes(784, 512, 256, 10), target=3.0),
)
BILLION = ((10_000, 1000),) * 100
GPU_CASES = (
    Case("billion", "1e9 parameters", BILLION, target=1.2),
    Case("gpt2", "GPT-2 124M, 148 tensors", gpt2_shapes()),
    Case("many", "2000 tensors of 4096", ((4096,),) * 2000, target=5.0),
    # Not like for like: torch keeps the moments of these in bfloat16, we in float32.
    Case("billion-bf16", "1e9 bfloat16 parameters", BILLION, torch.bfloat16),
    Case("small", "400 small tensors", ((64, 64), (64,)) * 200),
    Case("mlp", "MLP, 6 tensors", mlp_shapes(784, 512, 256, 10)),
)


def cases_for(device: torch.device) -> tuple[Case, ...]:
    return GPU_CASES if device.type == "cuda" else CPU_CASES
