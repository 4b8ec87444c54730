"""The pseudo-inverse by one-sided Jacobi: the driver that is the most accurate, and the slowest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedstep.linalg.numerics import UNIT, Factors, Tolerance, truncated

SWEEPS = 14  # of Jacobi: convergence is quadratic from about the fifth; 128 columns take 8 or 9


def jacobi(X: Tensor, tolerance: Tolerance, may_stop: bool = True) -> Factors:
    """X⁺ = V σ⁻¹ Uᵀ where X V = U σ, by rotating pairs of columns until all are orthogonal.

    One-sided Jacobi (M. R. Hestenes 1958, "Inversion of matrices by biorthogonalization") finds
    even small singular values to high relative accuracy. The rotations are those of G. H. Golub and
    C. F. Van Loan, Matrix Computations, section 8.6.3, for disjoint pairs at once, in the order of
    a round robin tournament. Two QR factorisations, the first of the columns sorted by their norms,
    halve the sweeps and leave no noise to rotate: Z. Drmac and K. Veselic 2008, "New fast and
    accurate Jacobi SVD algorithm".

    `may_stop`: the host reads after each sweep whether all have converged; else SWEEPS sweeps run.
    """
    X = X.to(torch.float64)
    k = X.shape[-1]
    order = torch.linalg.vector_norm(X, dim=-2).argsort(-1, descending=True)
    Q, R = torch.linalg.qr(X.gather(-1, order[:, None, :].expand_as(X)))
    Q2, R2 = torch.linalg.qr(R.mT)  # sorted X = Q R2ᵀ Q2ᵀ
    unit = torch.eye(k, dtype=X.dtype, device=X.device).expand(len(X), k, k)
    columns = torch.cat([R2, unit], dim=-1)  # each row: a column of R2ᵀ V, then one of V
    columns, done = _orthogonalise(F.pad(columns, (0, 0, 0, k % 2)), k, may_stop)
    U, V = columns[:, :k].mT.tensor_split(2, dim=-2)
    sigma = torch.linalg.vector_norm(U, dim=-2)
    left, rank, rcond = truncated(sigma, Q2 @ V, tolerance)
    left = left.scatter(-2, order[:, :, None].expand_as(left), left)
    U, *_ = truncated(sigma, U, tolerance)
    return Factors(left, Q @ U, rank, rcond, done)


def _orthogonalise(columns: Tensor, length: int, may_stop: bool) -> tuple[Tensor, Tensor]:
    """The columns `[b, even k, *]`, rotated until their first `length` elements are orthogonal.

    Also, for each matrix, whether they are.
    """
    half = columns.shape[1] // 2
    upper, lower = columns[:, :half], columns[:, half:]
    done = torch.zeros(len(columns), dtype=torch.bool, device=columns.device)
    for _ in range(SWEEPS):
        largest = columns.new_zeros(len(columns))
        for _ in range(2 * half - 1):
            upper, lower, cosine = _rotate(upper, lower, length)
            largest = torch.maximum(largest, cosine)
            upper, lower = _next_round(upper, lower)
        done = largest <= length * UNIT * 8
        if may_stop and bool(done.all()):
            break
    return torch.cat([upper, lower], dim=1), done


def _rotate(a: Tensor, b: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair of columns made orthogonal, and the largest cosine between two before that."""
    x, y = a[..., :length], b[..., :length]
    alpha, beta, gamma = (x * x).sum(-1), (y * y).sum(-1), (x * y).sum(-1)
    product = (alpha * beta).sqrt()
    cosine = torch.where(product > 0, gamma.abs() / product, 0.0)
    turn = cosine > UNIT
    zeta = (beta - alpha) / (2 * torch.where(turn, gamma, 1.0))
    tangent = torch.copysign(1 / (zeta.abs() + torch.hypot(zeta, torch.ones_like(zeta))), zeta)
    tangent = torch.where(turn, tangent, 0.0)
    c = (1 / (1 + tangent * tangent).sqrt())[..., None]
    s = tangent[..., None] * c
    return c * a - s * b, s * a + c * b, cosine.amax(-1)


def _next_round(upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """All but the first column move on by one place; after 2 * half - 1 rounds all have met."""
    if upper.shape[1] == 1:
        return upper, lower
    return (
        torch.cat([upper[:, :1], lower[:, :1], upper[:, 1:-1]], dim=1),
        torch.cat([lower[:, 1:], upper[:, -1:]], dim=1),
    )
