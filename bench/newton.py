"""Times Newton's root-finding steps for the last layer against plain torch, in turns.

    python bench/newton.py                    every case on every device, about a minute
    python bench/newton.py --case recalculated --seconds 5 --no-record

Both sides know that a token's gradient has rank 1, return the new weights and the mean loss before
and after, and leave the given weights alone. "recalculated" is against a loop that updates the
weights in place token by token, "components" against all logits at once. The floor is what the
float32 products cost that no such step can avoid, at the rate of torch's own in the same process.
Each run is appended to bench/results/newton.csv.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from micro.contest import Timer, alternate, cpu_seconds, cuda_seconds
from micro.record import RESULTS, append, facts
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from fusedstep import lm_head

RATE_SIZE = 2048  # of the matrices whose product gives the rate
Method = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def torch_recalculated(weight: Tensor, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A token after another: logits, loss, and a rank-1 update of all weights in place."""
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
    """Random hidden vectors and tokens, and weights as small as a fresh layer's."""

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


def multiplication_rate(device: torch.device, timer: Timer) -> float:
    """Operations a second of a float32 product, the best of seven."""
    A = torch.randn(RATE_SIZE, RATE_SIZE, device=device)
    return 2 * RATE_SIZE**3 / min(timer(lambda: A @ A, 1) for _ in range(7))


def difference(case: Case, problem: tuple[Tensor, Tensor, Tensor]) -> float:
    """Of the two sides' steps, relative to the step."""
    ours, theirs = (side(*problem)[0] for side in (case.ours, case.theirs))
    return float((ours - theirs).norm() / (theirs - problem[0]).norm())


def measure(case: Case, device: torch.device, seconds: float) -> dict:
    timer = cuda_seconds if device.type == "cuda" else cpu_seconds
    problem = case.problem(device)
    samples = alternate(lambda: case.ours(*problem), lambda: case.theirs(*problem), timer, seconds)
    our_ms, their_ms = (1e3 * statistics.median(side) for side in samples)
    floor_ms = 1e3 * case.operations / multiplication_rate(device, timer)
    return {
        "case": case.name,
        "tokens": case.tokens,
        "vocabulary": case.vocabulary,
        "width": case.width,
        "samples": len(samples[0]),
        "our_ms": f"{our_ms:.4g}",
        "torch_ms": f"{their_ms:.4g}",
        "ratio": f"{their_ms / our_ms:.3g}",
        "target": "" if case.target is None else case.target,
        "floor_ms": f"{floor_ms:.3g}",
        "difference": f"{difference(case, problem):.1e}",
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("all", "cpu", "cuda"), default="all")
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append")
    parser.add_argument("--seconds", type=float, default=12, help="of timing for each case")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="on a CPU")
    parser.add_argument("--csv", type=Path, default=RESULTS / "newton.csv", help="the results file")
    parser.add_argument("--no-record", action="store_true", help="leave the results file alone")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    there = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    wanted = [name for name in there if options.device in ("all", name)]
    if not wanted:
        raise SystemExit("bench/newton.py: no timings on CUDA: torch sees no GPU")
    rows = []
    for device in map(torch.device, wanted):
        where = facts(device)
        for case in CASES:
            if not options.case or case.name in options.case:
                print(f"{device}: {case.name} ...", flush=True)
                rows.append(where | measure(case, device, options.seconds))
    if not options.no_record:
        append(rows, options.csv)
    names = ("case", "device", "tokens", "vocabulary", "width", "torch_ms", "our_ms", "ratio")
    view = Table(*names, "target", "floor_ms", "difference", title="one step, medians in turns")
    for row in rows:
        view.add_row(*(str(row[column.header]) for column in view.columns))
    console = Console()
    console.width = max(console.width, 120)
    console.print(view)


if __name__ == "__main__":
    main()
