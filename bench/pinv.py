"""The group "solve": fusedstep.pinv and lstsq against torch's, over shapes, ranks and dtypes.

The roof is the time that a Gram matrix, its Cholesky inverse and one product need at the rate of
torch's float64 matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

import fusedstep
from bench.case import Case, Side, side_of_function


@dataclass(frozen=True)
class Problem:
    """Random matrices of this shape `[*, m, n]`; with a `rank`, products of two."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    rank: int | None = None
    columns: int | None = None  # of a right-hand side: least squares instead of an inverse

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
    def operations(self) -> int:
        """Half of XᵀX, a Cholesky factor and an inverse (k³), and the product with Xᵀ or XᵀB."""
        *batch, m, n = self.shape
        long, k = max(m, n), min(m, n)
        last = 2 * long * k * k if self.columns is None else 2 * (long * k + k * k) * self.columns
        return prod(batch) * (long * k * k + k**3 + last)

    @property
    def bytes(self) -> int:
        """A, and its inverse or the solution; the right-hand side repeats one short column."""
        *batch, m, n = self.shape
        return prod(batch) * n * (m + (self.columns or m)) * self.dtype.itemsize


PROBLEMS = (
    Problem("sequences", (64, 511, 128)),
    Problem("tiny", (5000, 16, 16)),
    Problem("tiny-deficient", (5000, 16, 16), rank=9),
    Problem("tiny-float64", (5000, 16, 16), torch.float64),
    Problem("wide", (64, 128, 511)),
    Problem("deficient", (64, 511, 128), rank=100),
    Problem("float64", (64, 511, 128), torch.float64),
    Problem("lstsq", (64, 511, 128), columns=4),
)


def sides_of(problem: Problem, device: torch.device) -> Iterator[Side]:
    A = problem.matrices(device)
    for provider, solve in zip(("fusedstep", "torch"), problem.sides(), strict=True):
        yield side_of_function(provider, partial(solve, A), device)


def case_of(problem: Problem, group: str) -> Case:
    """The case of a problem, in a group of this name."""
    function = "pinv" if problem.columns is None else "lstsq"
    return Case(
        name=f"{group}/{function}/{problem.name}",
        tensors=1,
        elements=prod(problem.shape),
        dtype=str(problem.dtype).removeprefix("torch."),
        mode="",
        least_bytes=problem.bytes,
        operations=problem.operations,
        sides=partial(sides_of, problem),
        tolerance=1e-2,  # torch's float32 errors where a matrix is ill-conditioned
        product=torch.float64,
    )


def cases() -> Iterator[Case]:
    for problem in PROBLEMS:
        yield case_of(problem, "solve")
