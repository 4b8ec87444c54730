"""What the drivers of pinv and lstsq cost on a CPU, and the choices that follow from it.

In fused multiply-adds, for X `[M, k]` of rank r, without the product that makes a pseudo-inverse of
two factors (2 M k r). The rates are of one core with AVX-512 and MKL, in 10⁹ a second:

    step                                               multiply-adds            rate, k = 64 .. 1000
    Gram matrix of float32 (kernels/linalg/gram.h)     M k² / 2                 11 .. 20
    its row space (kernels/linalg/row_space.h)         k r², k r² + r³ / 6      8 .. 20
    its Cholesky factor; from that its inverse         k³ / 6; k³ / 3           12 .. 15; 8 .. 14
    matrix product                                     M k²                     15 .. 25
    QR with Q and R                                    2 M k² - 2 k³ / 3        6 .. 17
    eigenvalues and vectors                            about 9 k³               8 .. 50, by parts
    SVD of R                                           about 13 k³              7 .. 25

So "auto" goes from the cheapest proof to the most expensive factorization:

    float32  Gram + Cholesky + inverse, for large k    proves that few or no columns are missing
             Gram + row space                          proves a full or a deficient rank
             eigh                                      where neither is proved, by the same Gram
             QR + SVD                                  where squares lost the digits
    float64  Gram in float32 + row space               guesses the rank, at a quarter of the cost
             QR (full rank), or `subspace` (deficient) proves it
             QR + SVD                                  where neither is proved

Python and some 40 small ops take 0.1 .. 0.3 ms. One op without LAPACK, kernels/linalg/small_pinv.h,
inverts a matrix [64, 64] in less. It has no blocks, so its rate is 2 .. 6:

    QR with pivots, up to column r                     M (2 k r - r²) - k r² + 2/3 r³
    inverse of rank k                                  3/2 M k² - k³ / 3
    inverse of rank r < k                              M (2 k r + 5/2 r²), 2 k r²
    solution of rank k, with few right sides           k³ / 6
    solution of rank r < k                             M (k r + r²), 2 k r²

It is the choice while a core's cache holds X; for float32, of which the Gram matrix costs less, as
long as the work is little. Where it proves nothing, torch's own functions do little float64 work.
They also serve for long matrices with few right sides, where LAPACK's gelsd never forms Q: M k²
instead of 2 M k².

LAPACK's Cholesky factorization is blocked better than that of the row space, which has pivots; but
some solves and dozens of small ops come beside it (linalg/nearly_full.py), and where the rank is a
half it is in vain, which costs some 4 to 8 % of the call. And the larger a square matrix is, the
likelier one of its singular values is too near to the tolerance for what the row space proves; then
eigenvalues would follow.

A GPU launches a kernel for each step of a small matrix, and cuSOLVER takes larger ones one by one:
there Cholesky, then eigh, serve the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusedstep import _C

if TYPE_CHECKING:
    from fusedstep.linalg.arguments import Limits

NEARLY_FULL_COLUMNS = 640  # k from which Cholesky's factorization is tried before the row space
SMALL_SIZE = 200_000  # k (M + k) of float64, up to which `small_pinv` is the fastest
SMALL_WORK = 2_000_000  # M k² of all matrices likewise, of float32
SVD_WORK = 300_000  # M k² of all matrices, up to which torch's pinv is the faster one
GELSD_WORK = 1_000_000  # the same of its gelsd
GELSD_LENGTH = 5  # m / n from which gelsd is the faster one whatever the work
GELSD_SIDES = 4  # k / right sides: with more of these, products with factors cost less
GELSD_RTOL = (2.0**-47, 0.5)  # what gelsd takes as it is; it replaces 0, 1 and more by eps


def takes_row_space(X: Tensor) -> bool:
    """Whether the row space is cheaper than Cholesky's factorization of the whole batch."""
    return not _C.has_solvers(X.device.type)


def takes_nearly_full(X: Tensor) -> bool:
    """Whether to try `nearly_full` before the row space."""
    return X.shape[-1] >= NEARLY_FULL_COLUMNS


def takes_small(A: Tensor) -> bool:
    """Whether the kernel for small matrices takes A `[*, m, n]`, if it is not empty."""
    m, n = A.shape[-2:]
    if not A.is_cpu or _C.has_solvers("cpu"):  # tests put a GPU's functions in the CPU's place
        return False
    if A.dtype == torch.float64:
        return 0 < min(m, n) * (m + n) <= SMALL_SIZE
    return 0 < A.numel() * min(m, n) <= SMALL_WORK


def takes_svd(A: Tensor) -> bool:
    """Whether torch's pinv of A `[*, m, n]`, by an SVD, is the fastest, and as exact as ours."""
    known = A.is_cpu and A.dtype == torch.float64
    return known and 0 < A.numel() * min(A.shape[-2:]) <= SVD_WORK


def takes_gelsd(A: Tensor, B: Tensor, limits: Limits) -> bool:
    """Whether torch's lstsq of A `[*, m, n]` by gelsd is the fastest, and means the same."""
    known = A.is_cpu and A.dtype == torch.float64 and A.shape[:-2] == B.shape[:-2]
    if not (known and isinstance(limits.rtol, float)):
        return False
    m, n = A.shape[-2:]
    few = 0 < GELSD_SIDES * B.shape[-1] <= min(m, n)
    suits = m >= GELSD_LENGTH * n or A.numel() * min(m, n) <= GELSD_WORK
    return few and suits and A.numel() > 0 and GELSD_RTOL[0] <= limits.rtol <= GELSD_RTOL[1]


def multiplies_by_rank(rows: int, columns: int, rank: int) -> bool:
    """Whether W (X W)ᵀ costs less than (W Wᵀ) Xᵀ, for W `[columns, rank]`."""
    return 2 * rows * rank < columns * (rank + rows)
