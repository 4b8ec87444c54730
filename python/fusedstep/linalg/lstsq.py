"""Minimum-norm least squares for matrices of any rank, differentiable without a pseudo-inverse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from fusedstep.checks import refuse
from fusedstep.linalg.arguments import require_driver, require_matrices, tolerances
from fusedstep.linalg.ops import pinv_factors


def lstsq(
    A: Tensor,
    B: Tensor,
    *,
    rtol: float | Tensor | None = None,
    driver: str = "auto",
    synchronize: bool = True,
) -> Tensor:
    """The X of least norm among those with the least |A X - B|, for A of any rank.

    torch.linalg.lstsq does this on the CPU alone; on CUDA it takes full rank for granted.

    Args:
        A: `[*, m, n]`, float32, float64, bfloat16 or float16, of any strides.
        B: `[*, m, k]` of the same dtype, on the same device; the batches broadcast.
        rtol: singular values not above rtol * sigma_1 count as zero: as in `pinv`, a number or a
            tensor that broadcasts with A's batch; default eps * max(m, n).
        driver, synchronize: as in `pinv` beyond 32 rows or columns, whatever the size.

    Returns:
        `[*, n, k]` of A's dtype, computed in float64 and rounded once. NaN for a matrix A with an
        element that is NaN or infinite, or on which the driver failed. Differentiable in A and B
        any number of times, in both modes, at constant rank, from the same factors.

    Raises:
        ValueError, TypeError: `lstsq: <argument> must <property>, got <value>`.
    """
    function = "lstsq"
    require_matrices(function, "A", A)
    require_matrices(function, "B", B)
    require_driver(function, driver, False)
    if B.dtype != A.dtype:
        refuse(function, "B", f"have A's dtype {A.dtype}", B.dtype, TypeError)
    if B.device != A.device:
        refuse(function, "B", f"be on A's device {A.device}", B.device)
    if B.shape[-2] != A.shape[-2]:
        refuse(function, "B", f"have A's {A.shape[-2]} rows", tuple(B.shape))
    try:
        torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    except RuntimeError:
        refuse(function, "B", f"broadcast with A's batch {tuple(A.shape[:-2])}", tuple(B.shape))
    atol, rtol = tolerances(function, A, None, rtol)
    batch = torch.broadcast_shapes(A.shape[:-2], rtol.shape)
    dtype = A.dtype
    A = A if dtype == torch.float64 else A.to(torch.float32)
    A = A.expand(*batch, *A.shape[-2:])
    left, right = pinv_factors(
        A.detach(), atol.expand(batch), rtol.expand(batch), False, driver, synchronize
    )
    batch = torch.broadcast_shapes(batch, B.shape[:-2])
    A, B = (t.expand(*batch, *t.shape[-2:]) for t in (A, B.to(torch.float64)))
    return _solver().apply(A, B, left, right).to(dtype)


def _solver() -> type[Function]:
    # torch.compile takes no Function that has a forward mode of its own.
    return _Solve if torch.compiler.is_compiling() else _SolveBothModes


class _Solve(Function):
    """A⁺ B from the factors of A⁺, all in float64 but A, with derivatives from the same factors.

    With R = B - A X, from Golub and Pereyra 1973, equation 4.12, applied to B:
    dX = A⁺ (dB - dA X + A⁺ᵀ dAᵀ R) + (I - A⁺ A) dAᵀ A⁺ᵀ X.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, B: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return left @ (right @ B)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx, grad: Tensor):
        A, B, X, left, right = _saved(ctx)
        solve, adjoint = _both_ways(A, left, right)
        grad_B = adjoint(grad)  # A⁺ᵀ Ḡ
        grad_A = (B - A @ X) @ solve(grad_B).mT - grad_B @ X.mT
        grad_A = grad_A + adjoint(X) @ (grad - A.mT @ grad_B).mT
        return grad_A.to(ctx.saved_tensors[0].dtype), grad_B, None, None


class _SolveBothModes(_Solve):
    @staticmethod
    def jvp(ctx, dA: Tensor | None, dB: Tensor | None, *_):
        A, B, X, left, right = _saved(ctx)
        solve, adjoint = _both_ways(A, left, right)
        dB = torch.zeros_like(B) if dB is None else dB
        if dA is None:
            return solve(dB)
        dA = dA.to(torch.float64)
        outside = dA.mT @ adjoint(X)
        inside = dB - dA @ X + adjoint(dA.mT @ (B - A @ X)) - A @ outside
        return solve(inside) + outside


def _saved(ctx) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A, B, X, left, right, all in float64: B - A X cancels, and TF32 must have no part in it."""
    A, B, left, right, X = ctx.saved_tensors
    return A.to(torch.float64), B, X, left, right


def _both_ways(A: Tensor, left: Tensor, right: Tensor):
    """Z -> A⁺ Z and Z -> A⁺ᵀ Z, differentiable in A and Z."""
    solver = _solver()
    return (
        lambda Z: solver.apply(A, Z, left, right),
        lambda Z: solver.apply(A.mT, Z, right.mT, left.mT),
    )
