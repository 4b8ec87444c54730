"""The op behind pinv and lstsq: A⁺ as a product of two factors, by the driver that suits A.

Factors rather than A⁺ itself, because least squares applies them to B and never multiplies them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedstep.linalg import drivers
from fusedstep.linalg.jacobi import jacobi
from fusedstep.linalg.numerics import Factors, Tolerance, scaled

DONE, NOT_FINITE, FAILED = 0, 1, 2  # the convergence codes

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("fusedstep::pinv_factors", mutates_args=())
def pinv_factors(
    A: Tensor, atol: Tensor, rtol: Tensor, hermitian: bool, driver: str, synchronize: bool
) -> Results:
    """A `[*, m, n]`, float32 or float64; atol, rtol `[*]`, float64; k = min(m, n).

    Returns left `[*, n, k]` and right `[*, k, m]`, float64, whose product is A⁺; and of each matrix
    the rank (int64), the convergence code (int32) and rcond (float64). NaN in all of `left` where
    the code is not DONE.
    """
    batch, (m, n) = A.shape[:-2], A.shape[-2:]
    if A.numel() == 0:
        left, right, rank, code, rcond = _outputs(A)
        return left.zero_(), right.zero_(), rank.zero_(), code.zero_(), rcond.zero_()
    tall = m >= n
    X = A.contiguous().reshape(-1, m, n)
    X, factor, finite = scaled(X, may_look=synchronize)
    X = X if tall else X.mT
    tolerance = Tolerance(atol.expand(batch).flatten() * factor, rtol.expand(batch).flatten())
    precise = A.dtype == torch.float64
    found = (
        drivers.hermitian(X, tolerance)
        if hermitian
        else _factorise(X, tolerance, precise, driver, synchronize)
    )
    good = finite & found.done
    left = found.left.contiguous() * torch.where(good, factor, math.nan)[:, None, None]
    if tall:
        right = found.basis.contiguous().mT
    else:
        left, right = found.basis.mT.contiguous().mT, left.mT
    code = torch.where(finite, torch.where(found.done, DONE, FAILED), NOT_FINITE)
    return (
        left.reshape(*batch, *left.shape[-2:]),
        right.reshape(*batch, *right.shape[-2:]),
        torch.where(good, found.rank, 0).reshape(batch),
        code.to(torch.int32).reshape(batch),
        torch.where(good, found.rcond, math.nan).reshape(batch),
    )


def _factorise(
    X: Tensor, tolerance: Tolerance, precise: bool, driver: str, synchronize: bool
) -> Factors:
    """By the driver named, or Cholesky and then, for what that leaves, one that can truncate."""
    if driver == "eigh":
        return drivers.eigh(X, tolerance)
    if driver == "qr_svd":
        return drivers.qr_svd(X, tolerance)
    if driver == "jacobi":
        return jacobi(X, tolerance, may_stop=synchronize)
    found = (drivers.cholesky_twice if precise else drivers.cholesky)(X, tolerance)
    if driver == "cholesky":
        return found
    if not synchronize:
        return _select(found, jacobi(X, tolerance, may_stop=False))
    left_over = ~found.done
    if not bool(left_over.any()):
        return found
    by_svd = left_over if precise else left_over & drivers.blurred(X, tolerance)
    found = _repair(found, X, tolerance, by_svd, drivers.qr_svd)
    return _repair(found, X, tolerance, left_over & ~by_svd, drivers.eigh)


def _select(first: Factors, second: Factors) -> Factors:
    """Of each matrix the first where that is done, else the second; decided on the device."""
    use = first.done
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


def _outputs(A: Tensor) -> Results:
    """What the op returns for A, with the same strides and nothing in it."""
    batch, (m, n) = A.shape[:-2], A.shape[-2:]
    k = min(m, n)

    def factor(*size: int) -> Tensor:
        return A.new_empty(*batch, *size, dtype=torch.float64)

    factors = (factor(n, k) if m >= n else factor(k, n).mT, factor(m, k).mT)
    return (
        *factors,
        A.new_empty(batch, dtype=torch.int64),
        A.new_empty(batch, dtype=torch.int32),
        A.new_empty(batch, dtype=torch.float64),
    )


@pinv_factors.register_fake
def _(A, atol, rtol, hermitian, driver, synchronize):
    return _outputs(A)


@pinv_factors.register_vmap
def _(info, in_dims, A, atol, rtol, hermitian, driver, synchronize):
    A, atol, rtol = (
        t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
        for t, dim in zip((A, atol, rtol), in_dims, strict=False)
    )
    A = A.expand(info.batch_size, *A.shape[1:])
    results = pinv_factors(A, atol, rtol, hermitian, driver, synchronize)
    return results, (0,) * len(results)
