"""The group "solve": loss and gradient of rows of logits against plain torch.

Both sides give each row's loss and |p - e_y|², and leave p - e_y behind (ours divided by 1 - p_y);
"losses" computes losses alone. "row" is what a sequential method needs for one token. The roof is
the time to read the logits once, and to write them once where they change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.case import Case, Side, side_of
from fusedstep.lm_head.softmax import directions_, token_losses

Compute = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Problem:
    """Normally distributed float32 logits."""

    name: str
    rows: int
    vocabulary: int
    gradient: bool = True

    def problem(self, device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(self.rows, self.vocabulary, generator=generator)
        tokens = torch.randint(self.vocabulary, (self.rows,), generator=generator)
        return logits.to(device), tokens.to(device)

    def ours(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """In place: later calls read what earlier ones wrote, which takes as long."""
        if self.gradient:
            return directions_(logits, tokens)
        return (token_losses(logits, tokens),)

    def theirs(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """Normalizes once: the probabilities overwrite their logarithms."""
        if not self.gradient:
            return (cross_entropy(logits, tokens, reduction="none"),)
        logs, at = logits.log_softmax(1), tokens[:, None]
        losses = -logs.gather(1, at).squeeze(1)
        delta = logs.exp_()
        delta.scatter_add_(1, at, delta.new_full((self.rows, 1), -1.0))
        return losses, torch.linalg.vector_norm(delta, dim=1)

    @property
    def bytes(self) -> int:
        return 4 * self.rows * self.vocabulary * (2 if self.gradient else 1)


PROBLEMS = (
    Problem("chunk", 256, 32000),
    Problem("row", 1, 50257),
    Problem("losses", 256, 32000, gradient=False),
)


def losses_and_norms(loss: Tensor, *rest: Tensor) -> list[Tensor]:
    """Of either side: ours has factors of the gradient's norm."""
    if len(rest) == 2:
        miss, square = rest
        rest = (miss * square.sqrt(),)
    return [loss.double(), *(norm.double() for norm in rest)]


def side_of_compute(
    provider: str, compute: Compute, problem: Problem, device: torch.device
) -> Side:
    """The first call's result is kept: later ones read what it wrote over the logits."""
    given, first = problem.problem(device), list[Tensor]()

    def call() -> None:
        found = compute(*given)
        if not first:
            first.extend(found)

    return side_of(provider, call, device, lambda: losses_and_norms(*first) if first else [])


def sides_of(problem: Problem, device: torch.device) -> Iterator[Side]:
    yield side_of_compute("fusedstep", problem.ours, problem, device)
    yield side_of_compute("torch", problem.theirs, problem, device)


def cases() -> Iterator[Case]:
    for problem in PROBLEMS:
        yield Case(
            name=f"solve/softmax/{problem.name}",
            tensors=1,
            elements=problem.rows * problem.vocabulary,
            dtype="float32",
            mode="",
            least_bytes=problem.bytes,
            operations=0,
            sides=partial(sides_of, problem),
            tolerance=1e-4,
        )
