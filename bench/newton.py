"""Times Newton's root-finding steps for the last layer against plain torch, in turns.

    python -m bench.newton                    every case on every device, about a minute
    python -m bench.newton --case recalculated --seconds 5 --no-record

Both sides know that a token's gradient has rank 1, return the new weights and the mean loss before
and after, and leave the given weights alone. "recalculated" is timed against a loop that updates
the weights in place token by token, "components" against all logits at once. The floor is the time
of the float32 products that no such step can avoid, at the rate of torch's in the same process.
Each run is appended to bench/results/newton.csv.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from bench.measure import Benchmark, compare, product_rate, run, timing_columns
from bench.record import Row
from fusedstep import lm_head

RATE_SIZE = 2048  # of the matrices whose product gives the rate
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
class Case:
    """Random hidden vectors and tokens, and weights as small as those of a new layer."""

    name: str
    ours: Method
    theirs: Method
    tokens: int
    products: int  # of tokens x vocabulary x width, which cannot be avoided
    vocabulary: int = 32000
    width: int = 256
    target: float | None = None  # wanted ratio of torch's time to ours

    def problem(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        weight = 0.02 * torch.randn(self.vocabulary, self.width, generator=generator)
        hidden = torch.randn(self.tokens, self.width, generator=generator)
        tokens = torch.randint(self.vocabulary, (self.tokens,), generator=generator)
        return weight.to(device), hidden.to(device), tokens.to(device)

    @property
    def operations(self) -> float:
        return 2.0 * self.products * self.tokens * self.vocabulary * self.width


RECALCULATED = (lm_head.newton_components_recalculated, torch_recalculated)
CASES = (
    Case("recalculated", *RECALCULATED, tokens=128, products=2, target=5.0),
    Case("recalculated-512", *RECALCULATED, tokens=512, products=2),
    Case("components", lm_head.newton_components, torch_components, tokens=512, products=3),
)


def difference(case: Case, problem: tuple[Tensor, Tensor, Tensor]) -> float:
    """Between the two sides' steps, relative to the step."""
    ours, theirs = (side(*problem)[0] for side in (case.ours, case.theirs))
    return float((ours - theirs).norm() / (theirs - problem[0]).norm())


def measure(case: Case, device: torch.device, seconds: float, rate: float) -> Row:
    problem = case.problem(device)
    medians = compare(lambda: case.ours(*problem), lambda: case.theirs(*problem), device, seconds)
    return {
        "case": case.name,
        "tokens": case.tokens,
        "vocabulary": case.vocabulary,
        "width": case.width,
        **timing_columns(medians, target=case.target, floor_ms=1e3 * case.operations / rate),
        "difference": f"{difference(case, problem):.1e}",
    }


def main() -> None:
    columns = "case device tokens vocabulary width torch_ms our_ms ratio target floor_ms difference"
    run(
        Benchmark(
            "newton",
            str(__doc__),
            CASES,
            lambda device: product_rate(device, RATE_SIZE, torch.float32),
            measure,
            columns.split(),
            "one step, medians in turns",
        )
    )


if __name__ == "__main__":
    main()
