"""Small softmax regressions for the tests of the Newton family."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Regression(NamedTuple):
    """The arguments that every method of the family takes."""

    weight: Tensor  # [V, d]
    hidden: Tensor  # [N, d]
    tokens: Tensor  # [N]


def regression(
    tokens: int = 12,
    width: int = 5,
    vocabulary: int = 9,
    *,
    spread: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Regression:
    """Hidden vectors that say something about their tokens; weights of standard deviation `spread`,
    of which 20 is far from every optimum."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    hidden = normal(tokens, width) + 0.5 * normal(vocabulary, width)[labels]
    weight = spread * normal(vocabulary, width)
    return Regression(weight.to(dtype), hidden.to(dtype), labels)


def relative(actual: Tensor, expected: Tensor) -> float:
    """The error's norm over the norm of what is expected."""
    return float((actual - expected).norm() / expected.norm())
