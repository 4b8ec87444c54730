"""The factorisations behind pinv: Cholesky with a certificate, eigh of the Gram matrix, QR and SVD.

All take X `[b, M, k]` with M >= k in float64, so that the Gram matrix of float32 data keeps every
singular value that float32 can tell from zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedstep.linalg import decompositions
from fusedstep.linalg.numerics import Factors, Tolerance, frobenius, gram_error, truncated


def _certificate(
    G: Tensor, inverse: Tensor, tolerance: Tolerance, rows: int
) -> tuple[Tensor, Tensor]:
    """Whether no singular value can count as zero, and a lower bound on smallest over largest.

    Their squares are G's eigenvalues, so sigma_1^2 <= |G|_F and sigma_k^2 >= 1 / |G⁻¹|_F; what
    rounding may have done to the latter is taken off.
    """
    largest = frobenius(G)
    smallest = 1 / frobenius(inverse) - gram_error(rows, G.shape[-1]) * largest
    largest, smallest = largest.sqrt(), smallest.clamp(min=0).sqrt()
    slack = 1 + 16 * torch.finfo(torch.float64).eps  # of the comparison itself
    return smallest > tolerance.of(largest) * slack, (smallest / largest).nan_to_num(0, 0, 0)


def _certified(left: Tensor, basis: Tensor, done: Tensor, rcond: Tensor) -> Factors:
    rank = torch.where(done, left.shape[-1], 0)
    return Factors(left, basis, rank, torch.where(done, rcond, 0.0), done)


def cholesky(X: Tensor, tolerance: Tolerance) -> Factors:
    """X⁺ = G⁻¹ Xᵀ with G = XᵀX: an error of cond², for data that were float32."""
    G = X.mT @ X
    root, exists = decompositions.inverse_of_cholesky_factor(G)
    inverse = root.mT @ root
    full, rcond = _certificate(G, inverse, tolerance, X.shape[-2])
    return _certified(inverse, X, exists & full, rcond)


def cholesky_twice(X: Tensor, tolerance: Tolerance) -> Factors:
    """CholeskyQR2 (Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm").

    With W = L⁻ᵀ of the first factor, Q = X W is orthogonal up to cond² rounding errors and X⁺ is
    W (QᵀQ)⁻¹ Qᵀ whatever W is: an error of cond, if up to ten times that of an SVD.
    """
    G = X.mT @ X
    root, exists = decompositions.inverse_of_cholesky_factor(G)
    full, rcond = _certificate(G, root.mT @ root, tolerance, X.shape[-2])
    W = root.mT
    Q = X @ W
    again, exists_again = decompositions.inverse_of_cholesky_factor(Q.mT @ Q)
    return _certified(W @ (again.mT @ again), Q, exists & exists_again & full, rcond)


def eigh(X: Tensor, tolerance: Tolerance) -> Factors:
    """X⁺ = V λ⁻¹ (XV)ᵀ with XᵀX = V λ Vᵀ.

    Squaring leaves nothing of singular values below about 1e-7 of the largest: they count as zero.
    """
    eigenvalues, V, done = decompositions.eigh(X.mT @ X)
    floor = math.sqrt(gram_error(*X.shape[-2:]))
    above_noise = Tolerance(tolerance.atol, tolerance.rtol.clamp(min=floor))
    inverse, rank, rcond = truncated(eigenvalues.clamp(min=0).sqrt(), above_noise)
    return Factors(V * inverse.square()[:, None, :], X @ V, rank, rcond, done)


def blurred(X: Tensor, tolerance: Tolerance) -> Tensor:
    """Where the threshold lies in the noise of the Gram matrix, so that `eigh` cannot decide."""
    largest = frobenius(X)  # at least the largest singular value
    floor = math.sqrt(gram_error(*X.shape[-2:]))
    return tolerance.of(largest / math.sqrt(X.shape[-1])) < floor * largest


def qr_svd(X: Tensor, tolerance: Tolerance) -> Factors:
    """X = Q R, R = U σ Vᵀ, X⁺ = V σ⁻¹ (QU)ᵀ: the singular values of X to the last digits."""
    Q, R = torch.linalg.qr(X)
    U, sigma, Vh, done = decompositions.svd(R)
    inverse, rank, rcond = truncated(sigma, tolerance)
    return Factors(Vh.mT * inverse[:, None, :], Q @ U, rank, rcond, done)


def hermitian(A: Tensor, tolerance: Tolerance) -> Factors:
    """A⁺ = V λ⁻¹ Vᵀ for symmetric A, of which the lower triangle is read."""
    eigenvalues, V, done = decompositions.eigh(A)
    inverse, rank, rcond = truncated(eigenvalues, tolerance)
    return Factors(V * inverse[:, None, :], V, rank, rcond, done)
