"""Pseudo-inverses of complex matrices: torch's own routine in complex128, with its derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import pinv as torchs_pinv  # by this name even if users put ours in its place

from fusedstep import _C
from fusedstep.checks import refuse
from fusedstep.linalg.numerics import Tolerance


def complex_pinv(A: Tensor, tolerance: Tolerance, hermitian: bool) -> Tensor:
    """A⁺ `[*, n, m]`, complex128; NaN for a matrix with a NaN or an infinity.

    Of `hermitian` A the lower triangle is read, and the real part of the diagonal.
    """
    if torch.compiler.is_compiling():  # torch's result is wrong there; without fullgraph this runs
        refuse("pinv", "A", "be real in torch.compile(fullgraph=True)", A.dtype, TypeError)
    wide, finite = _finite(A, hermitian)
    P: Tensor = torchs_pinv(wide, **tolerance._asdict(), hermitian=hermitian)
    failed = complex(math.nan, math.nan)
    return P.masked_fill(~finite[..., None, None], failed)


def complex_info(A: Tensor, tolerance: Tolerance, hermitian: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rank (int64), convergence code (int32) and rcond (float64) of each matrix."""
    wide, finite = _finite(A.detach(), hermitian)
    sigma = torch.linalg.eigvalsh(wide).abs() if hermitian else torch.linalg.svdvals(wide)
    sigma = torch.nn.functional.pad(sigma, (0, 1))  # an empty matrix has none
    largest = sigma.amax(-1, keepdim=True)
    limit = torch.maximum(tolerance.atol[..., None], tolerance.rtol[..., None] * largest)
    kept = sigma > limit
    rank = kept.sum(-1)
    rcond = torch.where(kept, sigma, math.inf).amin(-1) / largest[..., 0]
    rcond = torch.where(rank > 0, rcond, 0.0).masked_fill(~finite, math.nan)
    code = torch.where(finite, _C.PINV_CODES["DONE"], _C.PINV_CODES["NOT_FINITE"])
    return torch.where(finite, rank, 0), code.to(torch.int32), rcond


def _finite(A: Tensor, hermitian: bool) -> tuple[Tensor, Tensor]:
    """A in complex128, and which matrices are finite; the others are 0, or torch would raise."""
    wide = A.to(torch.complex128)
    if hermitian:
        lower = wide.tril(-1)
        wide = lower + lower.mH + torch.diag_embed(wide.diagonal(dim1=-2, dim2=-1).real)
    finite = wide.isfinite().flatten(-2).all(-1)
    return wide.masked_fill(~finite[..., None, None], 0.0), finite
