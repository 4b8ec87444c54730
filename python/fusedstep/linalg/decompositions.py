"""Cholesky, eigenvalues and singular values of batches, where one failure spoils no other matrix.

All take and return float64, and tell of each matrix whether it succeeded: of one that did not the
results mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def inverse_of_cholesky_factor(G: Tensor) -> tuple[Tensor, Tensor]:
    """L⁻¹ of symmetric G = L Lᵀ `[b, k, k]`; done where G is positive definite."""
    L, info = torch.linalg.cholesky_ex(G)
    unit = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    return torch.linalg.solve_triangular(L, unit, upper=False), info == 0


def eigh(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """λ `[b, k]`, ascending, and V with A = V λ Vᵀ, for symmetric A `[b, k, k]`."""
    return _alone(torch.linalg.eigh, A)


def svd(R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, σ `[b, k]`, descending, and Vᵀ with R = U σ Vᵀ, for square R `[b, k, k]`."""
    return _alone(torch.linalg.svd, R)


def _alone(factorise: Callable, X: Tensor) -> tuple[Tensor, ...]:
    """`factorise(X)`, and for each matrix whether that succeeded; NaN where it did not.

    torch refuses a whole batch for one matrix that does not converge: the batch is then halved
    until that matrix is alone.
    """
    try:
        return *factorise(X), torch.ones(len(X), dtype=torch.bool, device=X.device)
    except torch.linalg.LinAlgError:
        if len(X) == 1:
            results = (torch.full_like(t, math.nan) for t in factorise(torch.zeros_like(X)))
            return *results, torch.zeros(1, dtype=torch.bool, device=X.device)
    halves = (_alone(factorise, half) for half in X.tensor_split(2))
    return tuple(map(torch.cat, zip(*halves, strict=True)))
