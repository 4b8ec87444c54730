"""Times least squares of the last layer against plain torch, in turns, with a floor.

    python -m bench.least_squares                  every case on every device, about a minute
    python -m bench.least_squares --case small --seconds 5 --no-record

Torch's side is the fastest way to write it: a float64 Gram matrix, index_add_, a Cholesky factor,
its inverse and one product. The floor is the time of half of that Gram matrix and the product, and
of reading the hidden states and writing the sums and the weight once, at the rates of torch's
float64 product and copy in the same process. Each run is appended to
bench/results/least_squares.csv.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.measure import (
    Benchmark,
    compare,
    copy_rate,
    product_rate,
    run,
    timing_columns,
)
from bench.record import Row
from fusedstep.lm_head import LeastSquares, least_squares

RATE_SIZE = 1024  # of the matrices whose product gives the rate


@dataclass(frozen=True)
class Case:
    """Hidden states [tokens, width], float32; token v has a probability like 1 / (v + 1)."""

    name: str
    tokens: int
    vocabulary: int
    width: int
    target: float | None = None  # wanted ratio of torch's time to ours

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
    return product_rate(device, RATE_SIZE, torch.float64), copy_rate(device)


def measure(case: Case, device: torch.device, seconds: float, rate: tuple[float, float]) -> Row:
    hidden, tokens = case.batch(device)
    solver = LeastSquares(case.width, case.vocabulary, device=device)
    solver.update(hidden, tokens)
    truth = solver.solve()
    error = (least_squares(hidden, tokens, case.vocabulary) - truth).abs().max() / truth.abs().max()
    medians = compare(
        lambda: least_squares(hidden, tokens, case.vocabulary),
        lambda: case.torch_solution(hidden, tokens),
        device,
        seconds,
    )
    floor = case.operations / rate[0] + case.bytes / rate[1]
    return {
        "case": case.name,
        "tokens": case.tokens,
        "vocabulary": case.vocabulary,
        "width": case.width,
        **timing_columns(medians, target=case.target, floor_ms=1e3 * floor),
        "rounding": f"{float(error):.1e}",
    }


def main() -> None:
    columns = "case device tokens vocabulary width torch_ms our_ms ratio target floor_ms rounding"
    run(Benchmark("least_squares", str(__doc__), CASES, rates, measure, columns.split()))


if __name__ == "__main__":
    main()
