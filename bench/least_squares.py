"""The group "solve": least squares of the last layer against plain torch.

torch's side is the fastest way to write it: a float64 Gram matrix, index_add_, a Cholesky factor,
its inverse and one product. The roof is the time of half of that Gram matrix and the product at the
rate of torch's float64 product, or of reading the hidden states and writing the sums and the weight
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.case import Case, Side, side_of_function
from fusedstep.lm_head import least_squares


@dataclass(frozen=True)
class Problem:
    """Hidden states [tokens, width], float32; token v has a probability like 1 / (v + 1)."""

    name: str
    tokens: int
    vocabulary: int
    width: int

    def batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        hidden = torch.randn(self.tokens, self.width, generator=generator, device=device)
        often = 1 / torch.arange(1, self.vocabulary + 1, device=device).float()
        tokens = torch.multinomial(often, self.tokens, replacement=True, generator=generator)
        return hidden, tokens

    def torch_solution(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        wide = hidden.double()
        sums = wide.new_zeros(self.vocabulary, self.width).index_add_(0, tokens, wide)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(wide.T @ wide))
        return (sums @ inverse).float()

    @property
    def operations(self) -> int:
        return (self.tokens + 2 * self.vocabulary) * self.width**2

    @property
    def bytes(self) -> int:
        """Hidden states and weight in float32, the sums in float64."""
        return self.width * (4 * self.tokens + 12 * self.vocabulary)


PROBLEMS = (
    Problem("small", 20_000, 4096, 128),
    Problem("words", 20_000, 50_257, 128),
    Problem("wide", 8192, 4096, 768),
)


def sides_of(problem: Problem, device: torch.device) -> Iterator[Side]:
    batch = problem.batch(device)
    ours = partial(least_squares, *batch, problem.vocabulary)
    yield side_of_function("fusedstep", ours, device)
    yield side_of_function("torch", partial(problem.torch_solution, *batch), device)


def cases() -> Iterator[Case]:
    for problem in PROBLEMS:
        yield Case(
            name=f"solve/least_squares/{problem.name}",
            tensors=1,
            elements=problem.tokens * problem.width,
            dtype="float32",
            mode="",
            least_bytes=problem.bytes,
            operations=problem.operations,
            sides=partial(sides_of, problem),
            tolerance=1e-3,
            product=torch.float64,
        )
