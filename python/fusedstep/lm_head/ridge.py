"""Pseudo-inverses of a Gram matrix plus ridges: by Cholesky where that is safe, else by eigh."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusedstep.linalg.numerics import gram_error


class Spectrum(NamedTuple):
    """G = vectors diag(values) vectorsᵀ: `[d]`, none negative, and `[d, d]`."""

    values: Tensor
    vectors: Tensor


def spectrum(gram: Tensor) -> Spectrum:
    """Of a positive semidefinite matrix: what rounding made negative is zero."""
    values, vectors = torch.linalg.eigh(gram)
    return Spectrum(values.clamp(min=0), vectors)


def default_rtol(count: int, d_model: int) -> float:
    """What rounding may have done to the eigenvalues of a sum over `count` rows."""
    return gram_error(count, d_model)


def kept(of: Spectrum, ridge: Tensor, rtol: float) -> Tensor:
    """Which eigenvalues of G + ridge I exceed rtol times the largest: `[*, d]` for ridge `[*]`."""
    shifted = of.values + ridge[..., None]
    return shifted > rtol * shifted[..., -1:]


def inverses(of: Spectrum, ridge: Tensor, rtol: float) -> Tensor:
    """(G + ridge I)⁺ `[*, d, d]` for each of `ridge` `[*]`, at the cost of products alone."""
    shifted = of.values + ridge[..., None]
    inverted = torch.where(kept(of, ridge, rtol), 1 / shifted, 0.0)
    return (of.vectors * inverted[..., None, :]) @ of.vectors.mT


def certain_inverse(gram: Tensor, ridge: float, rtol: float) -> Tensor | None:
    """(G + ridge I)⁻¹ where no eigenvalue can count as zero, else None. Waits for the device.

    The largest eigenvalue is at most |M|_F and the smallest at least 1 / |M⁻¹|_F, so the answer is
    that of `inverses`, for a fraction of what eigh takes.
    """
    matrix = gram.clone()
    matrix.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        return None
    inverse = torch.cholesky_inverse(factor)
    condition = torch.linalg.matrix_norm(matrix) * torch.linalg.matrix_norm(inverse)
    return inverse if bool(condition * (rtol + gram_error(0, len(gram))) < 1) else None
