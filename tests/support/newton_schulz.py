"""The iteration of Jordan's post in float64, and matrices of several spectra for it."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
SPECTRA = ("even", "decaying", "low rank", "one large")


def exact(
    matrix: Tensor,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    steps: int = 5,
    eps: float = EPS,
) -> Tensor:
    """The iteration of https://kellerjordan.github.io/posts/muon/ without shortcuts, in float64."""
    a, b, c = coefficients
    x = matrix.double()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT if len(x) <= len(x.mT) else x.mT @ x
        polynomial = b * gram + c * gram @ gram
        x = a * x + (polynomial @ x if len(x) <= len(x.mT) else x @ polynomial)
    return x


def matrix_of(spectrum: str, m: int, n: int) -> Tensor:
    """A matrix [m, n] in bfloat16 whose singular values are as named."""
    generator = torch.Generator().manual_seed(m + n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    matrix = normal(m, n)
    if spectrum == "decaying":
        U, S, V = torch.linalg.svd(matrix, full_matrices=False)
        matrix = U * torch.logspace(0, -4, len(S)) @ V
    elif spectrum == "low rank":
        rank = -(-min(m, n) // 8)
        matrix = normal(m, rank) @ normal(rank, n)
    elif spectrum == "one large":
        matrix = 0.01 * matrix / m**0.5 + normal(m, 1) @ normal(1, n)
    return matrix.bfloat16()


def distance(actual: Tensor, expected: Tensor) -> float:
    """In the Frobenius norm, relatively."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
