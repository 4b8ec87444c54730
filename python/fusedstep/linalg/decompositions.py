"""Cholesky, eigenvalues and singular values of batches, in which a matrix may fail alone.

All functions take and return float64 and report for each matrix whether it succeeded; the results
of a failed matrix are meaningless. They use LAPACK on a CPU and cuSOLVER on a GPU, where nothing is
read on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.fakes import register_fake


def inverse_of_cholesky_factor(G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L, L⁻¹ of symmetric G = L Lᵀ `[b, k, k]`; done where G is positive definite.

    What is above the diagonal of L is undefined.
    """
    if _C.has_solvers(G.device.type):
        L, inverse, info = torch.ops.fusedstep.inverse_of_cholesky_factor(G)
        return L, inverse, info == 0
    L, info = torch.linalg.cholesky_ex(G)
    unit = torch.eye(G.shape[-1], dtype=G.dtype)
    return L, torch.linalg.solve_triangular(L, unit, upper=False), info == 0


def eigh(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """λ `[b, k]`, ascending, and V with A = V λ Vᵀ, for symmetric A `[b, k, k]`."""
    if _C.has_solvers(A.device.type):
        values, V, info = torch.ops.fusedstep.eigh(A)
        return values, V, info == 0
    (values, V), done = _alone(torch.linalg.eigh, A)
    return values, V, done


def svd(R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, σ `[b, k]`, descending, and Vᵀ with R = U σ Vᵀ, for square R `[b, k, k]`."""
    if not _C.has_solvers(R.device.type):
        (U, sigma, Vh), done = _alone(torch.linalg.svd, R)
        return U, sigma, Vh, done
    if R.shape[-1] > _C.SVD_COLUMNS:
        return svd_by_eigh(R)
    U, sigma, Vh, info = torch.ops.fusedstep.svd(R)
    return U, sigma, Vh, info == 0


def svd_by_eigh(R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`svd` from the eigenvalues ±σ and eigenvectors (u, ±v) / √2 of [[0, R], [Rᵀ, 0]].

    G. H. Golub and C. F. Van Loan, Matrix Computations, section 8.6.1: nothing is squared, so σ is
    as exact as by an SVD. cuSOLVER's own SVD takes larger matrices one by one; this is one call for
    the batch. If σ is only rounding errors, u and v are meaningless, so σ must count as zero.
    """
    k = R.shape[-1]
    zero = R.new_zeros(1, 1, 1).expand_as(R)
    both = torch.cat([torch.cat([zero, R], -1), torch.cat([R.mT, zero], -1)], -2)
    values, vectors, done = eigh(both)
    U, V = (math.sqrt(2) * vectors[:, :, k:].flip(-1)).tensor_split(2, dim=-2)
    return U, values[:, k:].flip(-1).clamp(min=0), V.mT, done


def _alone(
    factorise: Callable[[Tensor], Sequence[Tensor]], X: Tensor
) -> tuple[Sequence[Tensor], Tensor]:
    """`factorise(X)`, and for each matrix whether it succeeded; NaN if it did not.

    torch fails on the whole batch if one matrix does not converge; the batch is then halved until
    that matrix is alone.
    """
    try:
        return factorise(X), torch.ones(len(X), dtype=torch.bool)
    except torch.linalg.LinAlgError:
        if len(X) == 1:
            results = [torch.full_like(t, math.nan) for t in factorise(torch.zeros_like(X))]
            return results, torch.zeros(1, dtype=torch.bool)
    (first, first_done), (second, second_done) = (
        _alone(factorise, half) for half in X.tensor_split(2)
    )
    parts = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    return parts, torch.cat([first_done, second_done])


def _info(batch: Tensor) -> Tensor:
    return batch.new_empty(len(batch), dtype=torch.int32)


@register_fake("inverse_of_cholesky_factor")
def _(G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return G.new_empty(G.shape), G.new_empty(G.shape), _info(G)


@register_fake("eigh")
def _(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return A.new_empty(A.shape[:2]), A.new_empty(A.shape).mT, _info(A)


@register_fake("svd")
def _(R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return R.new_empty(R.shape).mT, R.new_empty(R.shape[:2]), R.new_empty(R.shape), _info(R)
