"""The two ops behind pinv and lstsq, opaque to torch.compile: what they return, and under vmap."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedstep.linalg.factors import Choice, factorise
from fusedstep.linalg.numerics import Tolerance

TINY = 32  # kLargest of kernels/linalg/tiny_matrix.h: rows and columns that its kernels take
CHUNK_BYTES = 2**22  # of A in float64, on a CPU: what follows finds it in a cache


@torch.library.custom_op("fusedstep::pinv", mutates_args=())
def pinv(
    A: Tensor, atol: Tensor, rtol: Tensor, hermitian: bool, driver: str, synchronize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A `[*, m, n]`, float32 or float64; atol, rtol `[*]`, float64.

    Returns A⁺ `[*, n, m]` of A's dtype; and of each matrix the rank (int64), the convergence code
    (int32) and rcond (float64).
    """
    if A.numel() == 0:
        return tuple(result.zero_() for result in _pinv_outputs(A))
    batch, (m, n), choice = A.shape[:-2], A.shape[-2:], Choice(hermitian, driver, synchronize)
    flat, tolerance = A.reshape(-1, m, n), _flatten(A, atol, rtol)
    if max(m, n) <= TINY and driver in ("auto", "jacobi") and not hermitian:
        both = tolerance.atol, tolerance.rtol
        P, *info = torch.ops.fusedstep.pinv_tiny(flat.contiguous(), *both, driver == "jacobi")
        return P.view(*batch, n, m), *(of_each.view(batch) for of_each in info)
    results = _pinv_outputs(A)
    into = (results[0].view(-1, n, m), *(result.view(-1) for result in results[1:]))
    chunk = len(flat) if A.is_cuda else max(1, CHUNK_BYTES // (8 * m * n))
    for begin in range(0, len(flat), chunk):
        part = slice(begin, begin + chunk)
        left, right, *info = factorise(flat[part], tolerance[part], choice)
        for whole, values in zip(into, (left @ right, *info), strict=True):
            whole[part] = values
    return results


@torch.library.custom_op("fusedstep::pinv_factors", mutates_args=())
def pinv_factors(
    A: Tensor, atol: Tensor, rtol: Tensor, hermitian: bool, driver: str, synchronize: bool
) -> tuple[Tensor, Tensor]:
    """The arguments of `pinv`; left `[*, n, k]` and right `[*, k, m]`, float64, k = min(m, n)."""
    if A.numel() == 0:
        return tuple(factor.zero_() for factor in _factor_outputs(A))
    batch, choice = A.shape[:-2], Choice(hermitian, driver, synchronize)
    found = factorise(A.reshape(-1, *A.shape[-2:]), _flatten(A, atol, rtol), choice)
    return tuple(factor.unflatten(0, batch) if batch else factor[0] for factor in found[:2])


def _flatten(A: Tensor, atol: Tensor, rtol: Tensor) -> Tolerance:
    return Tolerance(*(t.expand(A.shape[:-2]).reshape(-1) for t in (atol, rtol)))


@pinv.register_fake
def _(A, atol, rtol, hermitian, driver, synchronize):
    return _pinv_outputs(A)


@pinv_factors.register_fake
def _(A, atol, rtol, hermitian, driver, synchronize):
    return _factor_outputs(A)


def _pinv_outputs(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, (m, n) = A.shape[:-2], A.shape[-2:]
    kinds = (torch.int64, torch.int32, torch.float64)
    return (A.new_empty(*batch, n, m), *(A.new_empty(batch, dtype=kind) for kind in kinds))


def _factor_outputs(A: Tensor) -> tuple[Tensor, Tensor]:
    """With the strides that `factorise` gives."""
    batch, (m, n) = A.shape[:-2], A.shape[-2:]
    k = min(m, n)

    def factor(*size: int) -> Tensor:
        return A.new_empty(*batch, *size, dtype=torch.float64)

    return factor(n, k) if m >= n else factor(k, n).mT, factor(m, k).mT


def _register_vmap(op) -> None:
    """The mapped dimension becomes one more of the batch."""

    @op.register_vmap
    def _(info, in_dims, A, atol, rtol, *choice):
        A, atol, rtol = (
            t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((A, atol, rtol), in_dims, strict=False)
        )
        results = op(A.expand(info.batch_size, *A.shape[1:]), atol, rtol, *choice)
        return results, (0,) * len(results)


_register_vmap(pinv)
_register_vmap(pinv_factors)
