"""What the drivers share: scales, Gram matrices, what counts as zero, and the factors they give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**-53  # the unit roundoff of float64, in which every driver computes


class Verdict(IntEnum):
    """What a certificate says of a matrix; as in kernels/linalg/certificate.h."""

    CERTIFIED = 0  # no singular value counts as zero
    NOT_FINITE = 1  # there is a NaN or an infinity
    OPEN = 2  # something may count as zero
    BLURRED = 3  # so, and the tolerance is too small for eigenvalues of the Gram matrix


class Factors(NamedTuple):
    """Of matrices X `[b, M, k]`, M >= k: the pseudo-inverses are `left @ basis.mT`."""

    left: Tensor  # [b, k, k]
    basis: Tensor  # [b, M, k]
    rank: Tensor  # [b] int64
    rcond: Tensor  # [b] smallest kept singular value over the largest, or a lower bound on that
    done: Tensor  # [b] bool


@dataclass(frozen=True)
class Tolerance:
    """A singular value counts as zero unless it exceeds max(atol, rtol * the largest)."""

    atol: Tensor  # [b] float64
    rtol: Tensor  # [b] float64

    def times(self, factor: Tensor | float) -> Tolerance:
        """Of matrices that were multiplied by the factor, one number or one `[b]` for each."""
        return Tolerance((self.atol * factor).contiguous(), self.rtol.contiguous())

    def __getitem__(self, chosen: Tensor | slice) -> Tolerance:
        return Tolerance(self.atol[chosen], self.rtol[chosen])


def gram_error(rows: int, columns: int) -> float:
    """How far the eigenvalues of a computed Gram matrix may be off, relative to the largest.

    For a tolerance that is chosen on the host; kernels/linalg/gram.h has it for all else.
    """
    return 8 * UNIT * (math.sqrt(rows) + columns)


def scaled(X: Tensor, may_look: bool) -> tuple[Tensor, Tensor, Tensor]:
    """X such that float64 products do not overflow, the factor `[b]` it has, and what is finite.

    The factor is a power of two, so nothing is rounded; for float32 it is one. Matrices with an
    element that is NaN or infinite become zero, lest they stop the whole batch; `may_look`: the
    host may ask for that.
    """
    flat = X.flatten(1)
    largest = torch.maximum(flat.amax(-1), -flat.amin(-1)).to(torch.float64)
    finite = largest.isfinite()
    factor = torch.ones_like(largest)
    if X.dtype == torch.float64:
        exponent = torch.frexp(torch.where(finite, largest, 0.0)).exponent.clamp(-1000, 1000)
        factor = torch.ldexp(factor, -exponent)
        X = X * factor[:, None, None]
    if not (may_look and bool(finite.all())):
        X = X.masked_fill(~finite[:, None, None], 0.0)
    return X, factor, finite


def gram(X: Tensor) -> Tensor:
    """XᵀX `[b, k, k]`, float64; of float32 from exact products, and only on and below the diagonal.

    What follows reads no more of it.
    """
    if X.dtype == torch.float64:
        return X.mT @ X
    if 1 not in X.stride()[-2:]:
        X = X.contiguous()
    G = X.new_zeros(len(X), X.shape[-1], X.shape[-1], dtype=torch.float64)
    torch.ops.fusedstep.gram_(G, X)
    return G


def whole_gram(X: Tensor) -> Tensor:
    """XᵀX `[k, k]`, float64, of a single matrix `[n, k]`: also what is above the diagonal."""
    lower = gram(X[None])[0]
    return lower.tril() + lower.tril(-1).mT


def certify(
    G: Tensor, inverse: Tensor, exists: Tensor, tolerance: Tolerance, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Whether no singular value of X, of so many rows, counts as zero, by G = XᵀX and its inverse.

    Returns the verdict `[b]`, the rank and a lower bound on smallest over largest.
    """
    return torch.ops.fusedstep.certify(G, inverse, exists, tolerance.atol, tolerance.rtol, rows)


def truncated(
    values: Tensor, vectors: Tensor, tolerance: Tolerance, gram_rows: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors `[b, n, k]` over their values `[b, k]`, zero where those count as zero; rank; rcond.

    The values are singular values, or eigenvalues of any sign; or those of a Gram matrix of so many
    rows, whose square roots are compared, and count as zero within its rounding errors.
    """
    atol, rtol = tolerance.atol, tolerance.rtol
    return torch.ops.fusedstep.truncate_scale(values, vectors, atol, rtol, gram_rows)
