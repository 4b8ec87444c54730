"""The factorisations behind pinv: Cholesky with a certificate, eigh of the Gram matrix, QR and SVD.

All take X `[b, M, k]` with M >= k, float64 or the float32 that was given, and compute in float64,
so that the Gram matrix of float32 data keeps every singular value that float32 can tell from zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusedstep.linalg import decompositions
from fusedstep.linalg.numerics import Factors, Tolerance, Verdict, certify, gram, truncated


def cholesky(X: Tensor, tolerance: Tolerance) -> tuple[Factors, Tensor]:
    """X⁺ = G⁻¹ Xᵀ with G = XᵀX: an error of cond², for data that were float32. Also the verdicts.

    X may hold what is not finite.
    """
    G = gram(X)
    root, exists = decompositions.inverse_of_cholesky_factor(G)
    inverse = root.mT @ root
    verdict, rank, rcond = certify(G, inverse, exists, tolerance, X.shape[-2])
    return Factors(inverse, X.to(torch.float64), rank, rcond, verdict == Verdict.CERTIFIED), verdict


def cholesky_twice(X: Tensor, tolerance: Tolerance) -> Factors:
    """CholeskyQR2 (Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm").

    With W = L⁻ᵀ of the first factor, Q = X W is orthogonal up to cond² rounding errors and X⁺ is
    W (QᵀQ)⁻¹ Qᵀ whatever W is: an error of cond, if up to ten times that of an SVD.
    """
    G = gram(X)
    root, exists = decompositions.inverse_of_cholesky_factor(G)
    W = root.mT
    Q = X.to(torch.float64) @ W
    again, exists_again = decompositions.inverse_of_cholesky_factor(gram(Q))
    exists = exists & exists_again
    verdict, rank, rcond = certify(G, W @ root, exists, tolerance, X.shape[-2])
    return Factors(W @ (again.mT @ again), Q, rank, rcond, verdict == Verdict.CERTIFIED)


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
