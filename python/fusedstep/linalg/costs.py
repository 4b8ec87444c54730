"""What the drivers of pinv and lstsq cost on a CPU, and the choices that follow from it.

In fused multiply-adds, for X `[M, k]` of rank r, without the product that makes a pseudo-inverse of
two factors (2 M k r). The rates are of one core with AVX-512 and MKL, in 10⁹ a second:

    step                                               multiply-adds            rate, k = 64 .. 1000
    Gram matrix of float32 (kernels/linalg/gram.h)     M k² / 2                 11 .. 20
    its row space (kernels/linalg/row_space.h)         k r², k r² + r³ / 6      8 .. 20
    matrix product                                     M k²                     15 .. 25
    QR with Q and R                                    2 M k² - 2 k³ / 3        6 .. 17
    eigenvalues and vectors                            about 9 k³               8 .. 50, by parts
    SVD of R                                           about 13 k³              7 .. 25

So "auto" goes from the cheapest proof to the most expensive factorization:

    float32  Gram + row space                          proves a full or a deficient rank
             eigh                                      where neither is proved, by the same Gram
             QR + SVD                                  where squares lost the digits
    float64  Gram in float32 + row space               guesses the rank, at a quarter of the cost
             QR (full rank), or `subspace` (deficient) proves it
             QR + SVD                                  where neither is proved

A GPU launches a kernel for each step of a small matrix, and cuSOLVER takes larger ones one by one:
there Cholesky, then eigh, serve the whole batch.
"""

from __future__ import annotations

from torch import Tensor

from fusedstep import _C


def takes_row_space(X: Tensor) -> bool:
    """Whether the row space is cheaper than Cholesky's factorization of the whole batch."""
    return not _C.has_solvers(X.device.type)


def multiplies_by_rank(rows: int, columns: int, rank: int) -> bool:
    """Whether W (X W)ᵀ costs less than (W Wᵀ) Xᵀ, for W `[columns, rank]`."""
    return 2 * rows * rank < columns * (rank + rows)
