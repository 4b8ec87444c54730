"""The group "solve": Newton's root-finding steps for the last layer against plain torch.

Both sides know that a token's gradient has rank 1, return the new weights and the mean loss before
and after, and leave the given weights alone. "recalculated" is timed against a loop that updates
the weights in place token by token, "components" against all logits at once. The roof is the time
of the float32 products that no such step can avoid, at the rate of torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from bench.case import Case, Side, side_of_function
from fusedstep import lm_head

Method = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def torch_recalculated(weight: Tensor, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Token after token: logits, loss, and a rank-1 update of all weights in place."""
    weight = weight.clone()
    before = cross_entropy(hidden @ weight.T, tokens)
    for x, token in zip(hidden, tokens.tolist(), strict=True):
        logits = weight @ x
        delta = logits.softmax(0)
        delta[token] -= 1
        loss = logits.logsumexp(0) - logits[token]
        weight.addr_(delta * (loss / (delta.square().sum() * x.square().sum())), x, alpha=-1)
    return weight, torch.stack([before, cross_entropy(hidden @ weight.T, tokens)])


def torch_components(weight: Tensor, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens at the same weights, with all logits in memory."""
    logits = hidden @ weight.T
    losses = cross_entropy(logits, tokens, reduction="none")
    delta = logits.softmax(1) - one_hot(tokens, len(weight))
    scale = losses / (delta.square().sum(1) * hidden.square().sum(1))
    weight = weight - (scale[:, None] * delta).T @ hidden
    return weight, torch.stack([losses.mean(), cross_entropy(hidden @ weight.T, tokens)])


@dataclass(frozen=True)
class Problem:
    """Random hidden vectors and tokens, and weights as small as those of a new layer."""

    name: str
    ours: Method
    theirs: Method
    tokens: int
    products: int  # of tokens x vocabulary x width, which cannot be avoided
    vocabulary: int = 32000
    width: int = 256

    def problem(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        weight = 0.02 * torch.randn(self.vocabulary, self.width, generator=generator)
        hidden = torch.randn(self.tokens, self.width, generator=generator)
        tokens = torch.randint(self.vocabulary, (self.tokens,), generator=generator)
        return weight.to(device), hidden.to(device), tokens.to(device)

    @property
    def operations(self) -> int:
        return 2 * self.products * self.tokens * self.vocabulary * self.width


RECALCULATED = (lm_head.newton_components_recalculated, torch_recalculated)
PROBLEMS = (
    Problem("recalculated", *RECALCULATED, tokens=128, products=2),
    Problem("recalculated-512", *RECALCULATED, tokens=512, products=2),
    Problem("components", lm_head.newton_components, torch_components, tokens=512, products=3),
)


def weight_of(method: Method, weight: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    """The new one."""
    return method(weight, hidden, tokens)[0]


def sides_of(problem: Problem, device: torch.device) -> Iterator[Side]:
    given = problem.problem(device)
    for provider, method in (("fusedstep", problem.ours), ("torch", problem.theirs)):
        weight = partial(weight_of, method, *given)
        yield side_of_function(provider, weight, device, start=given[0])


def cases() -> Iterator[Case]:
    for problem in PROBLEMS:
        yield Case(
            name=f"solve/newton/{problem.name}",
            tensors=1,
            elements=problem.vocabulary * problem.width,
            dtype="float32",
            mode="",
            least_bytes=8 * problem.vocabulary * problem.width,
            operations=problem.operations,
            sides=partial(sides_of, problem),
            tolerance=1e-4,
        )
