"""The pseudo-inverse as a product of two factors, by the factorisation that suits each matrix.

It returns factors instead of A⁺, because least squares applies them to B and never multiplies them.

The drivers take X `[b, M, k]` with M >= k and compute in float64. They return the pseudo-inverse as
two factors, and for which matrices they succeeded. `Method` decides what a user's `driver` means,
and `factorise` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedstep import _C
from fusedstep.linalg import costs, decompositions
from fusedstep.linalg.jacobi import jacobi
from fusedstep.linalg.nearly_full import nearly_full
from fusedstep.linalg.numerics import (
    SQUARE_LIMIT,
    UNIT,
    Factors,
    Tolerance,
    Verdict,
    certify,
    gram,
    row_space,
    scaled,
    truncated,
)

NAMES = ("auto", "cholesky", "eigh", "qr_svd", "jacobi")
HERMITIAN_NAMES = ("auto", "eigh")

ANGLE = 2.0**-22  # of a row space of a float32 copy, for condition 1: rounded, with some room
UNSCALED = (2.0**-50, 2.0**50)  # sizes of float64 that need no scale for float32's squares


class Method(NamedTuple):
    """How to factorise: the options of `pinv` that are not tensors."""

    hermitian: bool
    driver: str
    synchronize: bool

    def takes_tiny(self, rows: int, columns: int) -> bool:
        """Whether `pinv` uses the single kernel `pinv_tiny` for such matrices.

        For "auto" it runs a QR, and Jacobi unless that proves full rank; for "jacobi", only Jacobi.
        """
        known = self.driver in ("auto", "jacobi") and not self.hermitian
        return known and max(rows, columns) <= _C.TINY

    def takes_small(self, A: Tensor) -> bool:
        """Whether the single kernel `pinv_small` comes first for A `[*, m, n]`."""
        known = self.driver == "auto" and self.synchronize and not self.hermitian
        return known and costs.takes_small(A)

    def solve(self, X: Tensor, tolerance: Tolerance) -> tuple[Factors, Tensor, Tensor]:
        """The factors of X, float32 or float64; the factor `[b]` it was scaled by; what is finite.

        This defines what each driver means, except for tiny matrices.
        """
        if self.driver in ("auto", "cholesky") and not self.hermitian and X.dtype == torch.float32:
            # The squares of float32 do not overflow, so the Gram matrix shows what is finite.
            one = torch.ones(len(X), dtype=torch.float64, device=X.device)
            tolerance = tolerance.times(1.0)
            found, verdict = cholesky(X, tolerance)
            finite = verdict != Verdict.NOT_FINITE
            if self.driver == "auto":
                found = self.mend(found, verdict, X, tolerance)
            return found, one, finite
        X, factor, finite = scaled(X, may_look=self.synchronize)
        tolerance = tolerance.times(factor)
        if self.hermitian:
            found = hermitian(X, tolerance)
        elif self.driver == "eigh":
            found = eigh(X, tolerance)
        elif self.driver == "qr_svd":
            found = qr_svd(X, tolerance)
        elif self.driver == "jacobi":
            found = jacobi(X, tolerance, may_stop=self.synchronize)
        else:
            found = cholesky_twice(X, tolerance)
            if self.driver == "auto" and self.synchronize:
                found = _replace(found, X, tolerance, ~found.done, qr_svd)
            elif self.driver == "auto":
                found = _select(found.done, found, qr_svd(X, tolerance))
        return found, factor, finite

    def finds_row_space(self, X: Tensor) -> bool:
        """Whether the rank comes first, as `costs` explains; the host reads it."""
        known = self.driver == "auto" and not self.hermitian
        return known and self.synchronize and costs.takes_row_space(X)

    def allows_torch(self, *tensors: Tensor) -> bool:
        """Whether torch's own function may compute the same from the matrices, which are read.

        It may hang, or fail for a whole batch, where something is not finite.
        """
        known = self.driver == "auto" and self.synchronize and not self.hermitian
        return known and all(math.isfinite(t.detach().sum()) for t in tensors)

    def mend(self, found: Factors, verdict: Tensor, X: Tensor, tolerance: Tolerance) -> Factors:
        """Replaces factors of float32 X where nothing is proved, by a driver that can truncate.

        Also where squaring the condition number lost too many digits.
        """
        enough = found.done & _accurate(found)
        if not self.synchronize:
            finite = verdict != Verdict.NOT_FINITE
            masked = found.basis.masked_fill(~finite[:, None, None], 0.0)
            return _select(enough, found, qr_svd(masked, tolerance))
        if bool(enough.all()):
            return found
        inexact, full = found.done & ~enough, found.rank == X.shape[-1]
        found = _replace(found, X, tolerance, inexact & full, cholesky_twice)
        found = _replace(found, X, tolerance, verdict == Verdict.OPEN, eigh)
        rest = (verdict == Verdict.BLURRED) | (verdict == Verdict.OPEN) & ~_accurate(found)
        return _replace(found, X, tolerance, rest | inexact & ~full, qr_svd)


class Solution(NamedTuple):
    """For matrices A `[b, m, n]`, k = min(m, n): A⁺ = left @ right, both float64."""

    left: Tensor  # [b, n, k]; contiguous, or its transpose for m < n; NaN unless the code is DONE
    right: Tensor  # [b, k, m]; its transpose is contiguous. Less than k if `narrow`
    rank: Tensor  # [b] int64
    code: Tensor  # [b] int32
    rcond: Tensor  # [b] float64


def factorise(A: Tensor, tolerance: Tolerance, method: Method, narrow: bool = False) -> Solution:
    """A `[b, m, n]`, float32 or float64 and not empty.

    `narrow`: the factors are for their product, so they may be as narrow as the rank and have any
    strides.
    """
    tall = A.shape[-2] >= A.shape[-1]
    A = A.contiguous()
    X = A if tall else A.mT
    if method.finds_row_space(X):
        found, scale = _found_row_space(X, tolerance, method, narrow)
    else:
        found, *scale = method.solve(X, tolerance)
    left, basis, rank, rcond, _ = found
    if scale is None:
        code = torch.zeros_like(rank, dtype=torch.int32)  # DONE
    else:
        factor, finite = scale
        good = finite & found.done
        left = left * torch.where(good, factor, math.nan)[:, None, None]
        codes = _C.PINV_CODES
        code = torch.where(found.done, codes["DONE"], codes["FAILED"])
        code = torch.where(finite, code, codes["NOT_FINITE"]).to(torch.int32)
        rank, rcond = torch.where(good, rank, 0), torch.where(good, rcond, math.nan)
    if narrow:
        pair = (left, basis.mT) if tall else (basis, left.mT)
        return Solution(*pair, rank, code, rcond)
    missing = X.shape[-1] - left.shape[-1]
    if missing > 0:
        left, basis = F.pad(left, (0, missing)), F.pad(basis, (0, missing))
    if tall:
        return Solution(left.contiguous(), basis.contiguous().mT, rank, code, rcond)
    return Solution(basis.mT.contiguous().mT, left.contiguous().mT, rank, code, rcond)


def _found_row_space(
    X: Tensor, tolerance: Tolerance, method: Method, narrow: bool
) -> tuple[Factors, Sequence[Tensor] | None]:
    """What `Method.solve` returns, by way of the row space.

    None in place of the factors and of what is finite: nothing was scaled, and all is done.
    """
    tolerance = Tolerance(*(t.contiguous() for t in tolerance))
    if X.dtype == torch.float32:
        found, verdict = _by_gram(gram(X), X, tolerance, narrow)
        if int(verdict.max()) == Verdict.CERTIFIED and float(found.rcond.min()) > SQUARE_LIMIT:
            return found, None
        found = method.mend(_wide(found), verdict, X, tolerance)
        return found, (torch.ones_like(found.rcond), verdict != Verdict.NOT_FINITE)
    largest = X.abs().amax((-2, -1))  # on a CPU a ninth of the time of the infinity norm
    plain = all(UNSCALED[0] < x < UNSCALED[1] for x in largest.tolist())
    factor, finite = torch.ones_like(largest), largest > 0
    if not plain:
        X, factor, finite = scaled(X, may_look=True)
        tolerance = tolerance.times(factor)
    found = by_rank(X, tolerance)
    done = bool(found.done.all())
    if not done:
        found = _replace(_wide(found), X, tolerance, ~found.done, qr_svd)
    return found, None if done and plain else (factor, finite)


def _by_gram(G: Tensor, X: Tensor, tolerance: Tolerance, narrow: bool) -> tuple[Factors, Tensor]:
    """Factors of float32 X, as narrow as the largest rank if `narrow` allows, and the verdicts."""
    if not costs.takes_nearly_full(X):
        return _by_row_space(G, X, tolerance, narrow)
    ones = [slice(i, i + 1) for i in range(len(X))]
    each = [nearly_full(G[one], X[one], tolerance.of(one)) for one in ones]
    rest = [i for i, found in enumerate(each) if found is None]
    if len(rest) == len(X):
        return _by_row_space(G, X, tolerance, narrow)
    if rest:
        factors, verdict = _by_row_space(G[rest], X[rest], tolerance.of(rest), narrow=False)
        for i, one in zip(rest, ones, strict=False):
            each[i] = Factors(*(t[one] for t in factors)), verdict[one]
    parts = [found for found in each if found is not None]
    if len(parts) == 1:
        return parts[0]
    factors = Factors(*map(torch.cat, zip(*(found for found, _ in parts), strict=True)))
    return factors, torch.cat([verdict for _, verdict in parts])


def _by_row_space(
    G: Tensor, X: Tensor, tolerance: Tolerance, narrow: bool
) -> tuple[Factors, Tensor]:
    """The same of all matrices at once, by the op."""
    W, verdict, rank, rcond = row_space(G, tolerance, X.shape[-2])
    width = int(rank.max()) if narrow else X.shape[-1]
    return Factors(*_factors(W, X, width), rank, rcond, verdict == Verdict.CERTIFIED), verdict


def _factors(W: Tensor, X: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The cheaper two factors of W (X W)ᵀ, of which columns beyond `width` are zero."""
    rows, columns = X.shape[-2:]
    X = X.to(torch.float64)
    if costs.multiplies_by_rank(rows, columns, width):
        W = W[:, :, : max(width, 1)]
        return W, torch.bmm(X, W)
    return torch.bmm(W, W.mT), X


def _accurate(found: Factors) -> Tensor:
    """Where a driver that squares the condition number loses less than float32 can show."""
    return (found.rcond > SQUARE_LIMIT) | (found.rank == 0)


def _select(use: Tensor, first: Factors, second: Factors) -> Factors:
    """The first for each matrix of `use`, else the second; decided on the device."""
    return Factors(
        *(
            torch.where(use.view(-1, *[1] * (a.dim() - 1)), a, b)
            for a, b in zip(first, second, strict=True)
        )
    )


def _replace(
    found: Factors,
    X: Tensor,
    tolerance: Tolerance,
    where: Tensor,
    driver: Callable[[Tensor, Tolerance], Factors],
) -> Factors:
    """`found` with the factors of the chosen matrices replaced by the driver's."""
    chosen = where.nonzero().squeeze(-1)
    if len(chosen) == 0:
        return found
    if len(chosen) == len(X):
        return driver(X, tolerance)
    better = driver(X[chosen], tolerance.of(chosen))
    return Factors(
        *(old.index_copy(0, chosen, new) for old, new in zip(found, better, strict=True))
    )


def _wide(found: Factors) -> Factors:
    """With k columns, the last of them zero."""
    missing = found.left.shape[-2] - found.left.shape[-1]
    if missing == 0:
        return found
    left, basis = (F.pad(t, (0, missing)) for t in found[:2])
    return found._replace(left=left, basis=basis)


def by_rank(X: Tensor, tolerance: Tolerance) -> Factors:
    """By `qr` or, where the rank is guessed to be less than k, by `subspace`."""
    W, _, rank, _ = row_space(gram(X.to(torch.float32)), tolerance, X.shape[-2], guess=True)
    least, most = (int(r) for r in rank.aminmax())
    if least == X.shape[-1]:
        return qr(X, tolerance)
    if most < X.shape[-1]:
        even = least == most and most > 0
        return subspace(X, W[:, :, : max(most, 1)], rank, tolerance, even)
    found = qr(X, tolerance)
    chosen = (rank < X.shape[-1]).nonzero().squeeze(-1)
    better = _wide(subspace(X[chosen], W[chosen], rank[chosen], tolerance.of(chosen)))
    return Factors(
        *(old.index_copy(0, chosen, new) for old, new in zip(found, better, strict=True))
    )


def cholesky(X: Tensor, tolerance: Tolerance) -> tuple[Factors, Tensor]:
    """X⁺ = G⁻¹ Xᵀ with G = XᵀX: an error of cond², for data that were float32. Also the verdicts.

    X may hold NaN and infinities.
    """
    G = gram(X)
    _, root, exists = decompositions.inverse_of_cholesky_factor(G)
    inverse = root.mT @ root
    verdict, rank, rcond = certify(G, inverse, exists, tolerance, X.shape[-2])
    return Factors(inverse, X.to(torch.float64), rank, rcond, verdict == Verdict.CERTIFIED), verdict


def cholesky_twice(X: Tensor, tolerance: Tolerance) -> Factors:
    """CholeskyQR2 (Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm").

    With L of the first factorization, Q = X L⁻ᵀ is orthogonal up to cond² rounding errors, and X⁺
    is L⁻ᵀ (QᵀQ)⁻¹ Qᵀ. Q is solved for: a product with L⁻ᵀ would leave X - Q Lᵀ, and with it X⁺ X,
    off by a further cond.
    """
    G = gram(X)
    L, root, exists = decompositions.inverse_of_cholesky_factor(G)
    W = root.mT
    Q = torch.linalg.solve_triangular(L, X.to(torch.float64).mT, upper=False).mT
    _, again, exists_again = decompositions.inverse_of_cholesky_factor(gram(Q))
    exists = exists & exists_again
    verdict, rank, rcond = certify(G, W @ root, exists, tolerance, X.shape[-2])
    return Factors(W @ (again.mT @ again), Q, rank, rcond, verdict == Verdict.CERTIFIED)


def qr(X: Tensor, tolerance: Tolerance) -> Factors:
    """X = Q R, X⁺ = R⁻¹ Qᵀ, where R⁻¹ proves that no singular value counts as zero."""
    Q, R = torch.linalg.qr(X)
    unit = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    inverse = torch.linalg.solve_triangular(R, unit, upper=True)
    norm, smallest = _norm(R), 1 / _norm(inverse)
    threshold = torch.maximum(tolerance.atol, tolerance.rtol * norm)
    done = smallest > threshold + norm * (UNIT * X.shape[-2])
    rank = torch.full_like(done, X.shape[-1], dtype=torch.int64)
    return Factors(inverse, Q, rank, smallest / norm, done)


def subspace(
    X: Tensor, W: Tensor, rank: Tensor, tolerance: Tolerance, even: bool = False
) -> Factors:
    """X = Q Zᵀ + E, Q an orthogonal basis of X W; Z = V T; X⁺ = V T⁻ᵀ Qᵀ where E counts as zero.

    W is what `row_space` guesses. One step of subspace iteration (G. H. Golub and C. F. Van Loan,
    Matrix Computations, section 8.2.4) makes Q as good as the singular vectors of X: its angle to
    them is that of W, which is `ANGLE` times the condition number, times |E| / sigma_r.

    `even`: all ranks are the number of columns of W. Otherwise those beyond a rank are zero, and
    ones on the diagonal let both triangular solves pass over them.
    """
    Y = torch.bmm(X, W)
    G = torch.bmm(Y.mT, Y)
    if not even:
        beyond = torch.arange(W.shape[-1], device=X.device) >= rank[:, None]
        ones = torch.diag_embed(beyond.to(X.dtype))
        G += ones
    L, info = torch.linalg.cholesky_ex(G)
    Q = torch.linalg.solve_triangular(L, Y.mT, upper=False).mT
    Z = torch.bmm(X.mT, Q)
    V, T = torch.linalg.qr(Z)
    left = torch.linalg.solve_triangular(T if even else T + ones, V.mT, upper=True).mT
    if not even:
        left = left.masked_fill(beyond[:, None, :], 0.0)
    norm, rest = _norm(T), _norm(torch.baddbmm(X, Q, Z.mT, alpha=-1))
    smallest = 1 / _norm(left)
    lower, none = norm / rank.clamp(min=1).sqrt(), rank == 0
    discards = rest <= torch.maximum(tolerance.atol, tolerance.rtol * lower)
    keeps = smallest - rest > torch.maximum(tolerance.atol, tolerance.rtol * (norm + rest))
    condition, gap = norm / smallest, rest / smallest
    sharp = gap * (gap + ANGLE * condition) <= 8 * UNIT * condition
    done = (info == 0) & discards & (none | (keeps & sharp))
    return Factors(left, Q, rank, torch.where(none, 0.0, smallest / norm), done)


def _norm(matrices: Tensor) -> Tensor:
    """Frobenius's, of each."""
    norm: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    return norm


def eigh(X: Tensor, tolerance: Tolerance) -> Factors:
    """X⁺ = V λ⁻¹ (XV)ᵀ with XᵀX = V λ Vᵀ.

    Squaring leaves nothing of singular values below about 1e-7 of the largest: they count as zero.
    """
    eigenvalues, V, done = decompositions.eigh(gram(X))
    left, rank, rcond = truncated(eigenvalues, V, tolerance, gram_rows=X.shape[-2])
    return Factors(left, X.to(torch.float64) @ V, rank, rcond, done)


def qr_svd(X: Tensor, tolerance: Tolerance) -> Factors:
    """X = Q R, R = U σ Vᵀ, X⁺ = V σ⁻¹ (QU)ᵀ: the singular values of X to the last digits."""
    Q, R = torch.linalg.qr(X.to(torch.float64))
    U, sigma, Vh, done = decompositions.svd(R)
    left, rank, rcond = truncated(sigma, Vh.mT, tolerance)
    return Factors(left, Q @ U, rank, rcond, done)


def hermitian(A: Tensor, tolerance: Tolerance) -> Factors:
    """A⁺ = V λ⁻¹ Vᵀ for symmetric A, of which the lower triangle is read."""
    eigenvalues, V, done = decompositions.eigh(A.to(torch.float64))
    left, rank, rcond = truncated(eigenvalues, V, tolerance)
    return Factors(left, V, rank, rcond, done)
