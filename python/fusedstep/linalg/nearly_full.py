"""The pseudo-inverse of a large float32 matrix of which no or few singular values count as zero.

A random square matrix is such: its smallest singular values lie near the tolerance, on both sides.
LAPACK's Cholesky factorization, without pivots, takes a small part of the time of `row_space`, and
serves here because the squares of the singular values are the eigenvalues λ of G = XᵀX:

    G = L Lᵀ               fails early where many λ are zero; then `row_space` serves
    V, Λ                   the smallest λ and their vectors, by inverse iteration with L
    G' = G + s V_p V_pᵀ    moves the p of them that count as zero, if any, away from it
    X⁺ = (I - V_p V_pᵀ) G'⁻¹ Xᵀ

What is proved, with `error` a bound on the rounding errors of G's eigenvalues:

    σ_1²   lies between |G|_F² / trace(G) and |G|_F. Where these decide too little: it is at least
           the largest Ritz value in a Krylov space, and at most u if u I - G is positive definite.
    p      λ_1 .. λ_p are at most Λ_1 .. Λ_p: they count as zero. As G' - G has rank p, λ_{p+1} is
           at least the smallest eigenvalue of G', which is at least 1 / |G'⁻¹|_F - error. Where
           this decides too little: it is at least h - error if G' - h I is positive definite.
    V_p    the angle to the singular vectors is at most the residual over λ_{p+1} - Λ_p (C. Davis
           and W. M. Kahan 1970, "The rotation of eigenvectors by a perturbation. III").

A matrix is positive definite if its Cholesky factorization succeeds. All this decides where no
singular value lies within some 3 % of the tolerance. The rest is left to another driver.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.linalg.numerics import SQUARE_LIMIT, Factors, Tolerance, Verdict

BLOCK = 8  # vectors of the inverse iteration: so many zeros are left to `row_space`
ROUNDS = 4  # of the inverse iteration
STEPS = 2  # of each round, before its residuals
ANGLE = 2.0**-25  # of V_p: half of a rounding of float32
KRYLOV = 10  # vectors, which find the square root of the largest λ to some 3 %
MARGIN = 1.06  # of u over that λ
SLACK = 1 + 2.0**-44  # of the sums of squares and of the comparisons


class Bounds(NamedTuple):
    """What is known of G's largest eigenvalue, σ_1², and what follows for the tolerance."""

    least: float
    most: float
    error: float  # of an eigenvalue of G
    atol: float
    rtol: float
    sharp: bool  # no better ones are to be had

    @property
    def discarded(self) -> float:
        """An eigenvalue up to this counts as zero."""
        return max(self.atol, self.rtol * math.sqrt(self.least)) ** 2 / SLACK - self.error

    @property
    def kept(self) -> float:
        """An eigenvalue above this does not."""
        return max(self.atol, self.rtol * math.sqrt(self.most)) ** 2 * SLACK

    @property
    def accurate(self) -> float:
        """Above this it does not, and G knows it well enough."""
        return max(self.kept, SQUARE_LIMIT**2 * self.most) * SLACK

    @property
    def shift(self) -> float:
        """If G - shift I is positive definite, all eigenvalues are at least `accurate`."""
        return self.accurate * SLACK + self.error


class Smallest(NamedTuple):
    """The smallest eigenvalues of G, by Ritz's method."""

    values: list[float]  # ascending, each at least the true one
    vectors: Tensor  # [k, BLOCK]
    residuals: Tensor  # [BLOCK]: norms

    def zeros(self, bounds: Bounds) -> int:
        """How many count as zero."""
        return sum(value <= bounds.discarded for value in self.values)

    def angle(self, zeros: int, following: float) -> float:
        """A bound on what the vectors of the first are off, for what follows their values."""
        if zeros == 0:
            return 0.0
        gap = following - self.values[zeros - 1]
        return float(self.residuals[:zeros].norm()) / gap if gap > 0 else math.inf

    def settled(self, bounds: Bounds) -> bool:
        """Whether it seems that more steps change nothing."""
        zeros = self.zeros(bounds)
        if zeros == BLOCK:
            return True
        following = self.values[zeros]
        near = float(self.residuals[zeros]) <= following - max(bounds.discarded, 0)
        return near and self.angle(zeros, following) <= ANGLE / 16  # the gap proved may be less


def nearly_full(G: Tensor, X: Tensor, tolerance: Tolerance) -> tuple[Factors, Tensor] | None:
    """The factors of one X `[1, M, k]` from its `gram`, and the verdict, which may be OPEN.

    None: X is not finite, or many singular values count as zero; else G is overwritten. On a CPU,
    and read by the host.
    """
    rows, k = X.shape[-2:]
    X, G = X[0], G[0]
    for size in (k // 4, 9 * k // 16):  # a smaller rank costs the row space less, and shows early
        if int(torch.linalg.cholesky_ex(G[:size, :size]).info) != 0:
            return None
    bounds = _bounds(G, rows, tolerance)
    factor = _factor(G, bounds.error) if math.isfinite(bounds.most) else None
    if factor is None:
        return None
    X = X.to(torch.float64)
    smallest, bounds = _smallest(X, G, factor.L, bounds)
    zeros = smallest.zeros(bounds)
    if zeros == BLOCK or (zeros == 0 and factor.shifted):
        return None
    L, V = factor.L, smallest.vectors[:, :zeros]
    unknown = Verdict.BLURRED if bounds.discarded < 0 else Verdict.OPEN
    if zeros > 0:
        L, info = torch.linalg.cholesky_ex(G.addmm_(V, V.mT, alpha=float(G.diagonal().mean())))
        if int(info) != 0:
            return _result(L, X, unknown)
    inverse = torch.cholesky_inverse(L).mT  # by rows, from which products are faster
    least = 1 / float(torch.linalg.vector_norm(inverse)) - bounds.error
    if not least > bounds.accurate:
        bounds = bounds if bounds.sharp else _sharper(bounds, X, G)  # G' exceeds G: it serves too
        if not least > bounds.accurate and _is_positive(G, -bounds.shift):
            least = bounds.accurate
    if not (least > bounds.kept and smallest.angle(zeros, least) <= ANGLE):
        return _result(inverse, X, unknown)
    if zeros > 0:
        inverse.addmm_(V, V.mT @ inverse, alpha=-1)
    return _result(inverse, X, Verdict.CERTIFIED, k - zeros, math.sqrt(least / bounds.most))


def _result(
    left: Tensor, X: Tensor, verdict: Verdict, rank: int = 0, rcond: float = 0.0
) -> tuple[Factors, Tensor]:
    """Of one matrix, with the dimension of a batch."""
    found = Factors(
        left[None],
        X[None],
        torch.tensor([rank]),
        torch.tensor([rcond], dtype=torch.float64),
        torch.tensor([verdict == Verdict.CERTIFIED]),
    )
    return found, torch.tensor([verdict], dtype=torch.int32)


class Factor(NamedTuple):
    """L with G = L Lᵀ; or G + error I if `shifted`."""

    L: Tensor
    shifted: bool


def _factor(G: Tensor, error: float) -> Factor | None:
    """None if many eigenvalues of G seem to be zero: then it fails far from the last column."""
    L, info = torch.linalg.cholesky_ex(G)
    if int(info) == 0:
        return Factor(L, False)
    if int(info) <= len(G) - BLOCK:
        return None
    G = G.clone()
    G.diagonal().add_(error)
    L, info = torch.linalg.cholesky_ex(G)
    return Factor(L, True) if int(info) == 0 else None


def _bounds(G: Tensor, rows: int, tolerance: Tolerance) -> Bounds:
    """From the norm and the trace of G. What is above its diagonal, which has no meaning, goes."""
    diagonal = G.tril_().diagonal()
    trace = float(diagonal.sum())
    squares = 2 * float(torch.linalg.vector_norm(G)) ** 2 - float(diagonal.square().sum())
    norm = math.sqrt(squares)
    least = squares / trace / SLACK if trace > 0 else 0.0
    error = _C.gram_error(rows, len(G)) * norm
    return Bounds(least, norm * SLACK, error, float(tolerance.atol), float(tolerance.rtol), False)


def _sharper(bounds: Bounds, X: Tensor, G: Tensor) -> Bounds:
    """From the powers of XᵀX times a vector, and a factorization."""
    v, powers = _start(len(G), 1), []
    for _ in range(KRYLOV):
        v = X.mT @ (X @ v)
        v /= torch.linalg.vector_norm(v)
        powers.append(v)
    values, *_ = _ritz(X, torch.cat(powers, 1))
    least = max(float(values[-1]) / SLACK, bounds.least)
    most = least * MARGIN + bounds.error
    proved = most < bounds.most and _is_positive(-G, most - bounds.error)
    return bounds._replace(least=least, most=most if proved else bounds.most, sharp=True)


def _smallest(X: Tensor, G: Tensor, L: Tensor, bounds: Bounds) -> tuple[Smallest, Bounds]:
    """By inverse iteration until they settle, and bounds that decide about each if any can.

    The last step of a round solves for a correction, from residuals of X itself. So the rounding
    errors of L, which may be larger than the smallest eigenvalues, slow it down but do not stay.
    """
    V = _start(len(G), BLOCK)
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            V = torch.cholesky_solve(torch.linalg.qr(V).Q, L)
        values, V, T = _ritz(X, V)
        residual = (T.mT @ X).mT - V * values
        found = Smallest(values.tolist(), V, torch.linalg.vector_norm(residual, dim=0))
        if not bounds.sharp and any(bounds.discarded < x <= bounds.kept for x in found.values):
            bounds = _sharper(bounds, X, G)
        if found.settled(bounds):
            break
        V = V - torch.cholesky_solve(residual, L)
    return found, bounds


def _ritz(X: Tensor, space: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values of XᵀX in a space `[k, *]`, ascending, their vectors V, and X V.

    The columns are kept as rows: BLAS multiplies few rows faster than few columns.
    """
    rows = torch.linalg.qr(space).Q.mT
    images = rows @ X.mT
    values, turn = torch.linalg.eigh(images @ images.mT)
    return values, (turn.mT @ rows).mT, (turn.mT @ images).mT


def _start(rows: int, columns: int) -> Tensor:
    """Random vectors, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator)


def _is_positive(A: Tensor, shift: float) -> bool:
    """Whether A + shift I has a Cholesky factorization; A is overwritten."""
    A.diagonal().add_(shift)
    return int(torch.linalg.cholesky_ex(A).info) == 0
