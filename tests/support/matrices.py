"""Matrices with known singular values, and pseudo-inverses to hold against, in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(count: int, k: int) -> Tensor:
    """Positive definite matrices `[count, k, k]`, far from singular."""
    X = random(count, k + 5, k)
    return X.mT @ X / k


def with_singular_values(m: int, n: int, sigma: Tensor, seed: int = 0) -> Tensor:
    """A random float64 matrix `[m, n]` with these singular values, the rest of them zero."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (
        torch.linalg.qr(torch.randn(size, len(sigma), dtype=torch.float64, generator=generator))[0]
        for size in (m, n)
    )
    return (U * sigma) @ V.mT


def conditioned(m: int, n: int, condition: float, rank: int | None = None, seed: int = 0) -> Tensor:
    """Singular values from 1 down to 1 / condition, evenly in their logarithms."""
    rank = min(m, n) if rank is None else rank
    exponents = torch.linspace(0, 1, rank, dtype=torch.float64)
    return with_singular_values(m, n, condition**-exponents, seed)


def true_pinv(A: Tensor, rtol: float) -> Tensor:
    """By the SVD in float64 of what A holds; for float32 data that is the truth."""
    return torch.linalg.pinv(A.double(), rtol=rtol)


def refined_pinv(A: Tensor) -> np.ndarray:
    """Of a float64 A of full rank, in extended precision: Newton's iteration (Ben-Israel 1965)."""
    a = A.numpy().astype(np.longdouble)
    p = torch.linalg.pinv(A, rtol=0.0).numpy().astype(np.longdouble)
    for _ in range(3):
        p = 2 * p - p @ a @ p
    return p


def relative_error(actual: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> float:
    actual, truth = (np.asarray(x, dtype=np.longdouble) for x in (actual, truth))
    return float(np.sqrt(((actual - truth) ** 2).sum() / (truth**2).sum()))
