"""The pseudo-inverse as a product of two factors, by the driver that suits each matrix.

Factors rather than A⁺ itself, because least squares applies them to B and never multiplies them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fusedstep.linalg import drivers
from fusedstep.linalg.jacobi import jacobi
from fusedstep.linalg.numerics import Factors, Tolerance, Verdict, scaled

DONE, NOT_FINITE, FAILED = 0, 1, 2  # the convergence codes
SQUARE_LIMIT = 2.0**-14.5  # of rcond: its square in float64 roundings is one of float32


class Choice(NamedTuple):
    """How to factorise: the options of pinv that are no tensors."""

    hermitian: bool
    driver: str
    synchronize: bool


class Solution(NamedTuple):
    """Of matrices A `[b, m, n]`, k = min(m, n): A⁺ = left @ right, both float64."""

    left: Tensor  # [b, n, k]; contiguous, or for m < n its transpose is; NaN unless DONE
    right: Tensor  # [b, k, m]; its transpose is contiguous
    rank: Tensor  # [b] int64
    code: Tensor  # [b] int32
    rcond: Tensor  # [b] float64


def factorise(A: Tensor, tolerance: Tolerance, choice: Choice) -> Solution:
    """A `[b, m, n]`, float32 or float64 and not empty."""
    tall = A.shape[-2] >= A.shape[-1]
    A = A.contiguous()
    X = A if tall else A.mT
    if A.dtype == torch.float32 and choice.driver in ("auto", "cholesky") and not choice.hermitian:
        factor = 1.0
        found, finite = _by_certificate(X, tolerance.times(factor), choice)
    else:
        X, factor, finite = scaled(X, may_look=choice.synchronize)
        found = _by_driver(X, tolerance.times(factor), choice)
    good = finite & found.done
    left = found.left.contiguous() * torch.where(good, factor, math.nan)[:, None, None]
    if tall:
        right = found.basis.contiguous().mT
    else:
        left, right = found.basis.mT.contiguous().mT, left.mT
    code = torch.where(finite, torch.where(found.done, DONE, FAILED), NOT_FINITE)
    return Solution(
        left,
        right,
        torch.where(good, found.rank, 0),
        code.to(torch.int32),
        torch.where(good, found.rcond, math.nan),
    )


def _by_certificate(X: Tensor, tolerance: Tolerance, choice: Choice) -> tuple[Factors, Tensor]:
    """Cholesky of float32 X as it is, then, for what that leaves, a driver that can truncate.

    Also which matrices are finite, as their Gram matrices tell: squares of float32 do not overflow.
    """
    found, verdict = drivers.cholesky(X, tolerance)
    finite = verdict != Verdict.NOT_FINITE
    if choice.driver == "cholesky":
        return found, finite
    enough = found.done & _accurate(found)
    if not choice.synchronize:
        masked = found.basis.masked_fill(~finite[:, None, None], 0.0)
        return _select(enough, found, drivers.qr_svd(masked, tolerance)), finite
    if bool(enough.all()):
        return found, finite
    found = _repair(found, X, tolerance, found.done & ~enough, drivers.cholesky_twice)
    found = _repair(found, X, tolerance, verdict == Verdict.OPEN, drivers.eigh)
    rest = (verdict == Verdict.BLURRED) | (verdict == Verdict.OPEN) & ~_accurate(found)
    return _repair(found, X, tolerance, rest, drivers.qr_svd), finite


def _by_driver(X: Tensor, tolerance: Tolerance, choice: Choice) -> Factors:
    """By the driver named; for float64, by CholeskyQR2 and then one that can truncate."""
    hermitian, driver, synchronize = choice
    if hermitian:
        return drivers.hermitian(X, tolerance)
    if driver == "eigh":
        return drivers.eigh(X, tolerance)
    if driver == "qr_svd":
        return drivers.qr_svd(X, tolerance)
    if driver == "jacobi":
        return jacobi(X.to(torch.float64), tolerance, may_stop=synchronize)
    found = drivers.cholesky_twice(X, tolerance)
    if driver == "cholesky":
        return found
    if not synchronize:
        return _select(found.done, found, drivers.qr_svd(X, tolerance))
    return _repair(found, X, tolerance, ~found.done, drivers.qr_svd)


def _accurate(found: Factors) -> Tensor:
    """Where a driver that squares the condition has still lost less than float32 can show."""
    return (found.rcond > SQUARE_LIMIT) | (found.rank == 0)


def _select(use: Tensor, first: Factors, second: Factors) -> Factors:
    """Of each matrix the first where that is of use, else the second; decided on the device."""
    return Factors(
        *(
            torch.where(use.view(-1, *[1] * (a.dim() - 1)), a, b)
            for a, b in zip(first, second, strict=True)
        )
    )


def _repair(found: Factors, X: Tensor, tolerance: Tolerance, where: Tensor, driver) -> Factors:
    """`found` with the factors of the chosen matrices replaced by the driver's."""
    chosen = where.nonzero().squeeze(-1)
    if len(chosen) == 0:
        return found
    if len(chosen) == len(X):
        return driver(X, tolerance)
    better = driver(X[chosen], tolerance[chosen])
    return Factors(
        *(old.index_copy(0, chosen, new) for old, new in zip(found, better, strict=True))
    )
