"""The eigenvalue method on random matrices, from random starts and from misleading ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusedstep.dynamics.eigenvectors import top_eigenpairs

F64 = torch.float64
SPECTRA = {
    "normal": lambda n, g: torch.randn(n, generator=g, dtype=F64),
    "a few outliers": lambda n, g: torch.randn(n, generator=g, dtype=F64) ** 5,
    "decaying": lambda n, g: 10.0 ** (-0.3 * torch.arange(n, dtype=F64)),
    "repeated": lambda n, g: torch.randint(3, (n,), generator=g).to(F64),
    "nearly repeated": lambda n, g: 1 + 1e-9 * torch.randn(n, generator=g, dtype=F64),
    "rank one": lambda n, g: 5.0 * (torch.arange(n) == 0),
    "negative": lambda n, g: -1 - torch.rand(n, generator=g, dtype=F64),
    "tiny": lambda n, g: 1e-150 * torch.randn(n, generator=g, dtype=F64),
}


def symmetric(name: str, size: int, generator: torch.Generator) -> Tensor:
    """A matrix with such a spectrum along random axes."""
    axes = torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=generator)).Q
    matrix = axes * SPECTRA[name](size, generator).to(F64) @ axes.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("size", [1, 2, 7, 40, 150])
@pytest.mark.parametrize("name", SPECTRA)
def test_random_matrices(name: str, size: int) -> None:
    """Wrong eigenvectors to start from must not be taken for the first ones."""
    generator = torch.Generator().manual_seed(size)
    for k in {min(k, size) for k in (1, 2, 5)}:
        matrix = symmetric(name, size, generator)
        expected, vectors = torch.linalg.eigh(matrix)
        others = vectors.T[torch.randperm(size, generator=generator)]
        near = others + 0.1 * torch.randn(size, size, generator=generator, dtype=F64)
        for start in (others[:0], others[:k], others[:1], near[:k]):
            values, found = top_eigenpairs("f", matrix.mv, start, k, 1e-8, size)
            norm = expected.abs().max()
            assert (values - expected.flip(0)[:k]).abs().max() <= 1e-8 * norm
            assert (found @ found.T - torch.eye(k, dtype=F64)).abs().max() < 1e-12
            residuals = found @ matrix - values[:, None] * found
            assert residuals.norm(dim=1).max() <= 1.01e-8 * norm + 1e-14 * norm
