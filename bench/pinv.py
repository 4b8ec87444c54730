"""Times fusedstep.pinv and lstsq against torch's, in turns, with a floor and both errors.

    python -m bench.pinv                      every case on every device, about two minutes
    python -m bench.pinv --case sequences --seconds 5 --no-record

The floor is the time that a Gram matrix, its Cholesky inverse and one product need at the rate of
torch's float64 matrix product, measured in the same process. Each run is appended to
bench/results/pinv.csv.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

import fusedstep
from bench.measure import Benchmark, compare, product_rate, run, timing_columns
from bench.record import Row

SAMPLE = 16  # matrices whose error is computed
RATE_SIZE = 1024  # of the matrices whose product gives the rate


@dataclass(frozen=True)
class Case:
    """Random matrices of this shape `[*, m, n]`; with a `rank`, products of two."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    rank: int | None = None
    columns: int | None = None  # of a right-hand side: least squares instead of an inverse
    target: float | None = None  # wanted ratio of torch's time to ours

    def matrices(self, device: torch.device) -> Tensor:
        generator = torch.Generator(device).manual_seed(0)
        *batch, m, n = self.shape
        normal = partial(torch.randn, generator=generator, device=device)
        if self.rank is None:
            return normal(self.shape).to(self.dtype)
        left, right = (
            normal(*batch, *size, dtype=torch.float64) for size in ((m, self.rank), (self.rank, n))
        )
        return (left @ right).to(self.dtype)

    def sides(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """fusedstep's function and torch's; for least squares, the one that takes any rank."""
        if self.columns is None:
            return fusedstep.pinv, torch.linalg.pinv

        def ours(A: Tensor) -> Tensor:
            return fusedstep.lstsq(A, self.right_side(A))

        def theirs(A: Tensor) -> Tensor:
            if A.is_cuda:  # torch.linalg.lstsq assumes full rank there
                return torch.linalg.pinv(A) @ self.right_side(A)
            return torch.linalg.lstsq(A, self.right_side(A), driver="gelsd").solution

        return ours, theirs

    def right_side(self, A: Tensor) -> Tensor:
        steps = torch.arange(1, A.shape[-2] + 1, device=A.device, dtype=A.dtype)
        return steps.sin()[:, None].expand(*A.shape[:-1], self.columns or 1)

    @property
    def operations(self) -> float:
        """Half of XᵀX, a Cholesky factor and an inverse (k³), and the product with Xᵀ or XᵀB."""
        *batch, m, n = self.shape
        long, k = max(m, n), min(m, n)
        last = 2 * long * k * k if self.columns is None else 2 * (long * k + k * k) * self.columns
        return prod(batch) * (long * k * k + k**3 + last)


CASES = (
    Case("sequences", (64, 511, 128), target=3.0),
    Case("tiny", (5000, 16, 16), target=2.0),
    Case("tiny-deficient", (5000, 16, 16), rank=9),
    Case("tiny-float64", (5000, 16, 16), torch.float64),
    Case("wide", (64, 128, 511)),
    Case("deficient", (64, 511, 128), rank=100),
    Case("float64", (64, 511, 128), torch.float64),
    Case("lstsq", (64, 511, 128), columns=4),
)


def error(solve: Callable[[Tensor], Tensor], truth: Tensor, A: Tensor) -> str:
    """The largest relative error of a matrix; "" for float64, for which there is no reference."""
    if A.dtype == torch.float64:
        return ""
    difference = solve(A).double() - truth
    relative = difference.flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    return f"{float(relative.max()):.1e}"


def measure(case: Case, device: torch.device, seconds: float, rate: float) -> Row:
    A = case.matrices(device)
    ours, theirs = case.sides()
    floor = case.operations / rate
    medians = compare(lambda: ours(A), lambda: theirs(A), device, seconds)
    few = A[:SAMPLE]
    rtol = torch.finfo(case.dtype).eps * max(A.shape[-2:])
    truth = torch.linalg.pinv(few.double(), rtol=rtol)
    if case.columns is not None:
        truth = truth @ case.right_side(few).double()
    return {
        "case": case.name,
        "shape": "x".join(map(str, case.shape)),
        "dtype": str(case.dtype).removeprefix("torch."),
        **timing_columns(medians, target=case.target, floor_ms=1e3 * floor),
        "of_floor": f"{medians.ours / floor:.3g}",
        "our_error": error(ours, truth, few),
        "torch_error": error(theirs, truth, few),
    }


def main() -> None:
    columns = "case device shape dtype torch_ms our_ms ratio target floor_ms our_error torch_error"
    run(
        Benchmark(
            "pinv",
            str(__doc__),
            CASES,
            lambda device: product_rate(device, RATE_SIZE, torch.float64),
            measure,
            columns.split(),
        )
    )


if __name__ == "__main__":
    main()
