"""Times least squares of the last layer against plain torch, in turns, with the floor beside.

    python bench/least_squares.py                  every case on every device, about a minute
    python bench/least_squares.py --case small --seconds 5 --no-record

Torch's side is the best form of it: a float64 Gram matrix, index_add_, a Cholesky factor, its
inverse and one product. The floor is half of that Gram matrix, the product, and one reading of the
hidden states and writing of the sums and the weight, at the rates of torch's float64 product and
copy in the same process. Each run is appended to bench/results/least_squares.csv.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from micro.contest import alternate, cpu_seconds, cuda_seconds
from micro.record import RESULTS, append, facts
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fusedstep.lm_head import LeastSquares, least_squares

RATE_SIZE = 1024  # of the matrices whose product gives the rate
COPIED = 1 << 24  # float64 elements copied for the bandwidth


@dataclass(frozen=True)
class Case:
    """Hidden states [tokens, width], float32; token v comes as often as 1 / (v + 1)."""

    name: str
    tokens: int
    vocabulary: int
    width: int
    target: float | None = None  # wanted ratio of torch's time to ours

    def batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(self.tokens, self.width, generator=generator)
        often = 1 / torch.arange(1, self.vocabulary + 1).float()
        tokens = torch.multinomial(often, self.tokens, replacement=True, generator=generator)
        return hidden.to(device), tokens.to(device)

    def torch_solution(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        wide = hidden.double()
        sums = wide.new_zeros(self.vocabulary, self.width).index_add_(0, tokens, wide)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(wide.T @ wide))
        return (sums @ inverse).float()

    @property
    def operations(self) -> float:
        return (self.tokens + 2 * self.vocabulary) * self.width**2

    @property
    def bytes(self) -> int:
        """Hidden states and weight in float32, the sums in float64."""
        return self.width * (4 * self.tokens + 12 * self.vocabulary)


CASES = (
    Case("small", 20_000, 4096, 128, target=1.3),
    Case("words", 20_000, 50_257, 128),
    Case("wide", 8192, 4096, 768),
)


def rates(device: torch.device) -> tuple[float, float]:
    """Operations a second of a float64 product, bytes a second of a copy; the best of seven."""
    timer = cuda_seconds if device.type == "cuda" else cpu_seconds
    A = torch.randn(RATE_SIZE, RATE_SIZE, dtype=torch.float64, device=device)
    source = torch.randn(COPIED, dtype=torch.float64, device=device)
    target = torch.zeros_like(source)
    product = min(timer(lambda: A @ A, 1) for _ in range(7))
    copy = min(timer(lambda: target.copy_(source), 1) for _ in range(7))
    return 2 * RATE_SIZE**3 / product, 16 * COPIED / copy


def measure(case: Case, device: torch.device, seconds: float, rate: tuple[float, float]) -> dict:
    hidden, tokens = case.batch(device)
    solver = LeastSquares(case.width, case.vocabulary, device=device)
    solver.update(hidden, tokens)
    truth = solver.solve()
    error = (least_squares(hidden, tokens, case.vocabulary) - truth).abs().max() / truth.abs().max()
    timer = cuda_seconds if device.type == "cuda" else cpu_seconds
    samples = alternate(
        lambda: least_squares(hidden, tokens, case.vocabulary),
        lambda: case.torch_solution(hidden, tokens),
        timer,
        seconds,
    )
    our_ms, their_ms = (1e3 * statistics.median(side) for side in samples)
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
        "floor_ms": f"{1e3 * (case.operations / rate[0] + case.bytes / rate[1]):.3g}",
        "rounding": f"{float(error):.1e}",
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("all", "cpu", "cuda"), default="all")
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append")
    parser.add_argument("--seconds", type=float, default=12, help="of timing for each case")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="on a CPU")
    parser.add_argument("--csv", type=Path, default=RESULTS / "least_squares.csv")
    parser.add_argument("--no-record", action="store_true", help="leave the results file alone")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    there = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    wanted = [name for name in there if options.device in ("all", name)]
    if not wanted:
        raise SystemExit("bench/least_squares.py: no timings on CUDA: torch sees no GPU")
    rows = []
    for device in map(torch.device, wanted):
        where, rate = facts(device), rates(device)
        for case in CASES:
            if not options.case or case.name in options.case:
                print(f"{device}: {case.name} ...", flush=True)
                rows.append(where | measure(case, device, options.seconds, rate))
    if not options.no_record:
        append(rows, options.csv)
    names = ("case", "device", "tokens", "vocabulary", "width", "torch_ms", "our_ms", "ratio")
    view = Table(*names, "target", "floor_ms", "rounding", title="medians in turns")
    for row in rows:
        view.add_row(*(str(row[column.header]) for column in view.columns))
    console = Console()
    console.width = max(console.width, 120)
    console.print(view)


if __name__ == "__main__":
    main()
