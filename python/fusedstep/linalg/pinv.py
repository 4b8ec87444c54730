"""The batched pseudo-inverse, and its derivatives of every order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fusedstep.checks import refuse
from fusedstep.linalg import ops
from fusedstep.linalg.arguments import require_driver, require_matrices, tolerances


class PinvInfo(NamedTuple):
    """What became of each matrix; every tensor has the shape of the batch."""

    rank: Tensor  # int64: singular values that exceed the tolerance; 0 where code is not 0
    code: Tensor  # int32: 0 done, 1 an element is NaN or infinite, 2 the driver failed
    rcond: Tensor  # float64: smallest over largest of those, or a bound below; 0 for rank 0, or NaN


def pinv(
    A: Tensor,
    *,
    atol: float | Tensor | None = None,
    rtol: float | Tensor | None = None,
    hermitian: bool = False,
    driver: str = "auto",
    return_info: bool = False,
    synchronize: bool = True,
) -> Tensor | tuple[Tensor, PinvInfo]:
    """The Moore-Penrose pseudo-inverse, as torch.linalg.pinv.

    Everything is computed in float64 and rounded once. Singular values not above
    max(atol, rtol * sigma_1) count as zero.

    Args:
        A: `[*, m, n]`, float32, float64, bfloat16 or float16, of any strides. Complex is refused.
        atol, rtol: numbers, or tensors that broadcast with the batch `*`. Defaults as torch's: atol
            0; rtol 0 where atol is positive, else eps * max(m, n), with the eps of float32 for half
            precisions too (128 bfloat16 eps are 1).
        hermitian: A is symmetric; only its lower triangle is read, also by the gradient.
        driver: with hermitian "auto" or "eigh", both of them A's own eigenvalues. Else:
            "auto" for m, n <= 32: QR for matrices it proves to have full rank, else "jacobi".
            Beyond: Cholesky of AᵀA (or AAᵀ, the smaller) for those it proves to have that:
            CholeskyQR2 for float64 and for float32 of a condition above 2e4, else the plain one.
            The others: "qr_svd" for float64; "eigh" for float32, but "qr_svd" where what is kept
            has such a condition or the tolerance is too small for eigh.
            "cholesky": that alone; the others fail. "eigh" of AᵀA: singular values below about
            1e-7 of the largest count as zero. "qr_svd": QR, then the SVD of R. "jacobi":
            one-sided rotations, the slowest and the most accurate in small singular values.
        return_info: return a PinvInfo too.
        synchronize: False: no result is read on the host, as a CUDA graph demands; "auto" beyond
            32 then runs "qr_svd" too on every matrix and selects on the device, which costs more.

    Returns:
        `[*, n, m]` of A's dtype; the batch is broadcast with that of the tolerances. A matrix with
        an element that is NaN or infinite, or on which the driver failed, becomes NaN; the others
        of its batch do not notice. Differentiable any number of times, in both modes, at constant
        rank (Golub and Pereyra 1973, equation 4.12).

    Raises:
        ValueError, TypeError: `pinv: <argument> must <property>, got <value>`.
    """
    function = "pinv"
    require_matrices(function, "A", A)
    require_driver(function, driver, hermitian)
    if hermitian and A.shape[-1] != A.shape[-2]:
        refuse(function, "A", "be square where hermitian=True", tuple(A.shape))
    atol, rtol = tolerances(function, A, atol, rtol)
    batch = torch.broadcast_shapes(A.shape[:-2], atol.shape, rtol.shape)
    wide = A if A.dtype == torch.float64 else A.to(torch.float32)
    wide = wide.expand(*batch, *A.shape[-2:])
    if hermitian:
        wide = wide.tril() + wide.tril(-1).mT
    P, *info = ops.pinv(
        wide.detach(), atol.expand(batch), rtol.expand(batch), hermitian, driver, synchronize
    )
    # torch.compile takes no Function that has a forward mode of its own.
    derived = _Backward if torch.compiler.is_compiling() else _BothModes
    P = derived.apply(wide, P).to(A.dtype)
    return (P, PinvInfo(*info)) if return_info else P


class _Backward(Function):
    """P as it is, with the derivatives of A⁺."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, P: Tensor) -> Tensor:
        return P.view_as(P)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx, grad: Tensor):
        A, P = ctx.saved_tensors
        return _in_float64(_vjp, A, P, grad), None


class _BothModes(_Backward):
    @staticmethod
    def jvp(ctx, tangent: Tensor, _):
        A, P = ctx.saved_tensors
        return _in_float64(_jvp, A, P, tangent)


def _in_float64(formula, A: Tensor, P: Tensor, direction: Tensor) -> Tensor:
    """Differences such as A - A P A cancel; and TF32 must have no part in them."""
    tensors = [t.to(torch.float64) for t in (A, P, direction)]
    if A.shape[-2] < A.shape[-1]:
        return formula(*(t.mT for t in tensors)).mT.to(A.dtype)
    return formula(*tensors).to(A.dtype)


# Both for m >= n, in an order in which no product is m x m.


def _vjp(A: Tensor, P: Tensor, grad: Tensor) -> Tensor:
    """-Pᵀ Ḡ Pᵀ + (I - A P) Ḡᵀ P Pᵀ + Pᵀ P Ḡᵀ (I - P A)."""
    turned = grad.mT @ (P @ P.mT)
    inner = P @ grad.mT
    return P.mT @ (inner - (inner @ P) @ A - grad @ P.mT) + turned - A @ (P @ turned)


def _jvp(A: Tensor, P: Tensor, dA: Tensor) -> Tensor:
    """-P dA P + P Pᵀ dAᵀ (I - A P) + (I - P A) dAᵀ Pᵀ P."""
    turned = (P @ P.mT) @ dA.mT
    outer = dA.mT @ P.mT
    return turned + (outer - P @ (A @ outer) - P @ dA - turned @ A) @ P
