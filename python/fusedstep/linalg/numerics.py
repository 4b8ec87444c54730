"""What the drivers share: the bound on rounding errors, a matrix's scale, and its factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**-53  # the unit roundoff of float64, in which every driver computes


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

    atol: Tensor  # [b]
    rtol: Tensor  # [b]

    def of(self, largest: Tensor) -> Tensor:
        return torch.maximum(self.atol, self.rtol * largest)

    def __getitem__(self, chosen: Tensor | slice) -> Tolerance:
        return Tolerance(self.atol[chosen], self.rtol[chosen])


def gram_error(rows: int, columns: int) -> float:
    """How far the eigenvalues of a computed Gram matrix may be off, relative to the largest.

    Eight times the size that rounding errors have in practice, which grows as the square root of
    the length of a sum; the worst case grows as the length and is never met.
    """
    return 8 * UNIT * (math.sqrt(rows) + columns)


def scaled(X: Tensor, may_look: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A float64 copy whose products do not overflow, the factor `[b]` it has, and what is finite.

    The factor is a power of two, so nothing is rounded. Matrices with an element that is NaN or
    infinite become zero, lest they stop the whole batch; `may_look`: the host may ask for that.
    """
    flat = X.flatten(1)
    largest = torch.maximum(flat.amax(-1), -flat.amin(-1)).to(torch.float64)
    finite = largest.isfinite()
    factor = torch.ones_like(largest)
    if X.dtype == torch.float64:
        exponent = torch.frexp(torch.where(finite, largest, 0.0)).exponent.clamp(-1000, 1000)
        factor = torch.ldexp(factor, -exponent)
        X = X * factor[:, None, None]
    else:
        X = X.to(torch.float64)
    if not (may_look and bool(finite.all())):
        X = X.masked_fill(~finite[:, None, None], 0.0)
    return X, factor, finite


def frobenius(X: Tensor) -> Tensor:
    """The norm of each matrix; over one dimension, which torch reduces far faster than over two."""
    return torch.linalg.vector_norm(X.reshape(len(X), -1), dim=-1)


def truncated(values: Tensor, tolerance: Tolerance) -> tuple[Tensor, Tensor, Tensor]:
    """1 / value where |value| exceeds the tolerance, else 0; the rank; the ratio of the kept.

    `values` is `[b, k]`, in any order and of any sign; the comparison is strict, as torch's.
    """
    size = values.abs()
    largest = size.amax(-1)
    keep = size > tolerance.of(largest)[:, None]
    inverse = torch.where(keep, 1 / values, 0.0)
    smallest = torch.where(keep, size, math.inf).amin(-1)
    rcond = torch.where(keep.any(-1), smallest / largest, 0.0)
    return inverse, keep.sum(-1), rcond
