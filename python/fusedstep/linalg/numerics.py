"""What the drivers share: scales, Gram matrices, what counts as zero, and their factors."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.fakes import register_fake

UNIT = 2.0**-53  # the unit roundoff of float64, in which every driver computes
SQUARE_LIMIT = 2.0**-14.5  # of rcond: its square in float64 roundings is one of float32


class Verdict(IntEnum):
    """What a certificate says about a matrix: enum Verdict of kernels/linalg/certificate.h."""

    CERTIFIED = _C.VERDICTS["CERTIFIED"]  # no singular value counts as zero
    NOT_FINITE = _C.VERDICTS["NOT_FINITE"]  # there is a NaN or an infinity
    OPEN = _C.VERDICTS["OPEN"]  # something may count as zero
    BLURRED = _C.VERDICTS["BLURRED"]  # and too small for eigenvalues of the Gram matrix


class Factors(NamedTuple):
    """For matrices X `[b, M, k]`, M >= k: the pseudo-inverses are `left @ basis.mT`."""

    left: Tensor  # [b, k, p]; p is k, or the largest rank where it is all that `narrow` needs
    basis: Tensor  # [b, M, p]
    rank: Tensor  # [b] int64
    rcond: Tensor  # [b] smallest kept singular value over the largest, or a lower bound on that
    done: Tensor  # [b] bool


class Tolerance(NamedTuple):
    """A singular value counts as zero unless it exceeds max(atol, rtol * the largest)."""

    atol: Tensor  # [b] float64
    rtol: Tensor  # [b] float64

    def times(self, factor: Tensor | float) -> Tolerance:
        """For matrices multiplied by the factor: one number, or `[b]` with one for each."""
        return Tolerance((self.atol * factor).contiguous(), self.rtol.contiguous())

    def flat(self, batch: torch.Size) -> Tolerance:
        """Of a batch `[*]`, with one value for each of its matrices in turn."""
        return Tolerance(*(t.expand(batch).reshape(-1) for t in self))

    def of(self, chosen: Tensor | slice | list[int]) -> Tolerance:
        """The tolerances of some of the matrices."""
        return Tolerance(self.atol[chosen], self.rtol[chosen])


def scaled(X: Tensor, may_look: bool) -> tuple[Tensor, Tensor, Tensor]:
    """X scaled so that float64 products do not overflow, the factors `[b]`, and what is finite.

    A factor is a power of two, so nothing is rounded; for float32 it is one. Matrices with a NaN or
    an infinity become zero, because they would stop the whole batch. `may_look`: the host may check
    whether there are any.
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
    """XᵀX `[b, k, k]`, float64; for float32, with exact products, only on and below the diagonal.

    Callers do not read the rest.
    """
    if X.dtype == torch.float64:
        return X.mT @ X
    if 1 not in X.stride()[-2:]:
        X = X.contiguous()
    G = X.new_zeros(len(X), X.shape[-1], X.shape[-1], dtype=torch.float64)
    torch.ops.fusedstep.gram_(G, X)
    return G


def whole_gram(X: Tensor) -> Tensor:
    """XᵀX `[k, k]`, float64, of a single matrix `[n, k]`, also above the diagonal."""
    lower = gram(X[None])[0]
    return lower.tril() + lower.tril(-1).mT


def certify(
    G: Tensor, inverse: Tensor, exists: Tensor, tolerance: Tolerance, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Whether no singular value of X counts as zero, from G = XᵀX and its inverse.

    `rows` is the number of rows of X. Returns the verdict `[b]`, the rank, and a lower bound on the
    smallest singular value over the largest.
    """
    verdict, rank, rcond = torch.ops.fusedstep.certify(G, inverse, exists, *tolerance, rows)
    return verdict, rank, rcond


def row_space(
    G: Tensor, tolerance: Tolerance, rows: int, guess: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W `[b, k, k]`, zero from column rank on, with X⁺ = W (X W)ᵀ, from G = XᵀX; on a CPU.

    `rows` is the number of rows of X. Also the verdict `[b]`, which must be CERTIFIED; the rank;
    and a lower bound on the smallest kept singular value over the largest. `guess`: nothing is
    proved; all that G cannot tell from zero counts as zero, and for rank k there is no W.
    """
    W, verdict, rank, rcond = torch.ops.fusedstep.row_space(G, *tolerance, rows, guess)
    return W, verdict, rank, rcond


def truncated(
    values: Tensor, vectors: Tensor, tolerance: Tolerance, gram_rows: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors `[b, n, k]` over their values `[b, k]`, zero where those count as zero; rank; rcond.

    The values are singular values, or eigenvalues of either sign. With `gram_rows`, they are the
    eigenvalues of the Gram matrix of so many rows: their square roots are compared, and those
    within its rounding errors count as zero.
    """
    scaled_vectors, rank, rcond = torch.ops.fusedstep.truncate_scale(
        values, vectors, *tolerance, gram_rows
    )
    return scaled_vectors, rank, rcond


@register_fake("gram_")
def _(gram: Tensor, rows: Tensor) -> None:
    return None


@register_fake("certify")
def _(
    gram: Tensor, inverse: Tensor, exists: Tensor, atol: Tensor, rtol: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    verdict, rank = (gram.new_empty(len(gram), dtype=d) for d in (torch.int32, torch.int64))
    return verdict, rank, gram.new_empty(len(gram))


@register_fake("row_space")
def _(
    gram: Tensor, atol: Tensor, rtol: Tensor, count: int, guess: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    verdict, rank = (gram.new_empty(len(gram), dtype=d) for d in (torch.int32, torch.int64))
    return gram.new_empty(gram.shape).mT, verdict, rank, gram.new_empty(len(gram))


@register_fake("truncate_scale")
def _(
    values: Tensor, vectors: Tensor, atol: Tensor, rtol: Tensor, gram_count: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    rank = values.new_empty(len(values), dtype=torch.int64)
    return vectors.new_empty(vectors.shape), rank, values.new_empty(len(values))
