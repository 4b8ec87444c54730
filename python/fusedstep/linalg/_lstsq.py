"""Minimum-norm least squares of any rank: the function, the op behind it, its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fusedstep.checks import refuse
from fusedstep.linalg._pinv import register_vmap
from fusedstep.linalg.arguments import (
    broadcast_shapes,
    require_driver,
    require_matrices,
    tolerances,
)
from fusedstep.linalg.drivers import Method, factorise
from fusedstep.linalg.numerics import Tolerance


def lstsq(
    A: Tensor,
    B: Tensor,
    *,
    rtol: float | Tensor | None = None,
    driver: str = "auto",
    synchronize: bool = True,
) -> Tensor:
    """Finds the X of least norm among those that minimize |A X - B|, for A of any rank.

    torch.linalg.lstsq does this on a CPU only; on CUDA it assumes full rank. The result is computed
    in float64 and rounded once. It is differentiable in A and B any number of times, in reverse and
    forward mode, where the rank is constant; all derivatives use the factors of the solution.

    Args:
        A: `[*, m, n]`, float32, float64, bfloat16 or float16, of any strides.
        B: `[*, m, k]`, of the same dtype and on the same device; the batches broadcast.
        rtol: Singular values of A not above rtol times the largest count as zero: a number of 0 or
            more, or a tensor that broadcasts with A's batch. Default: eps * max(m, n), as in
            `pinv`.
        driver: "auto", "cholesky", "eigh", "qr_svd" or "jacobi", as in `pinv`. "auto" does not use
            the small-matrix kernel.
        synchronize: False: do not read results on the host, as in `pinv`.

    Returns:
        X `[*, n, k]`, of A's dtype. It is NaN if A has a NaN or an infinity, or if the driver
        failed; the rest of the batch is unaffected.

    Raises:
        TypeError: A or B is not a dense tensor of one of these dtypes, or `rtol` is not a number.
        ValueError: Another argument has an invalid value. The message is
            `lstsq: <argument> must <property>, got <value>`.
        RuntimeError: A is on a GPU and there are no CUDA kernels for it.

    Example:
        >>> A = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> fusedstep.lstsq(A, torch.tensor([[1.0], [3.0], [4.0]]))
        tensor([[2.],
                [2.]])

    Source: G. H. Golub and V. Pereyra 1973, "The differentiation of pseudo-inverses and nonlinear
    least squares problems whose variables separate", equation 4.12, for the derivatives.
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
        broadcast_shapes(A.shape[:-2], B.shape[:-2])
    except RuntimeError:
        refuse(function, "B", f"broadcast with A's batch {tuple(A.shape[:-2])}", tuple(B.shape))
    tolerance = tolerances(function, A, None, rtol)
    batch = broadcast_shapes(A.shape[:-2], tolerance.rtol.shape)
    dtype = A.dtype
    A = A if dtype == torch.float64 else A.to(torch.float32)
    A = A.expand(*batch, *A.shape[-2:])
    per_matrix = (t.expand(batch) for t in tolerance)
    left, right = pinv_factors(A.detach(), *per_matrix, False, driver, synchronize)
    batch = broadcast_shapes(batch, B.shape[:-2])
    A, B = (t.expand(*batch, *t.shape[-2:]) for t in (A, B.to(torch.float64)))
    X: Tensor = _solver().apply(A, B, left, right)
    return X.to(dtype)


@torch.library.custom_op("fusedstep::pinv_factors", mutates_args=())
def pinv_factors(
    A: Tensor, atol: Tensor, rtol: Tensor, hermitian: bool, driver: str, synchronize: bool
) -> tuple[Tensor, Tensor]:
    """The arguments of `pinv_op`; left `[*, n, k]` and right `[*, k, m]`, float64, k = min(m, n).

    Their product is A⁺. Opaque to torch.compile.
    """
    if A.numel() == 0:
        left, right = _factors_of(A)
        return left.zero_(), right.zero_()
    batch, method = A.shape[:-2], Method(hermitian, driver, synchronize)
    tolerance = Tolerance(atol, rtol).flat(batch)
    left, right, *_ = factorise(A.reshape(-1, *A.shape[-2:]), tolerance, method)
    if not batch:
        return left[0], right[0]
    return torch.unflatten(left, 0, batch), torch.unflatten(right, 0, batch)


def _factors_of(A: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """The uninitialized results of `pinv_factors` for A, with the strides of `factorise`."""
    batch, (m, n) = A.shape[:-2], A.shape[-2:]
    k = min(m, n)

    def factor(*size: int) -> Tensor:
        return A.new_empty(*batch, *size, dtype=torch.float64)

    return factor(n, k) if m >= n else factor(k, n).mT, factor(m, k).mT


pinv_factors.register_fake(_factors_of)
register_vmap(pinv_factors)


def _solver() -> type[Function]:
    # torch.compile does not support a Function with a forward mode of its own.
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
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        A, B, X, left, right = _saved(ctx)
        solve, adjoint = _both_ways(A, left, right)
        grad_B = adjoint(grad)  # A⁺ᵀ Ḡ
        grad_A = (B - A @ X) @ solve(grad_B).mT - grad_B @ X.mT
        grad_A = grad_A + adjoint(X) @ (grad - A.mT @ grad_B).mT
        return grad_A.to(ctx.saved_tensors[0].dtype), grad_B, None, None


class _SolveBothModes(_Solve):
    @staticmethod
    def jvp(ctx: Any, dA: Tensor | None, dB: Tensor | None, *_: Any) -> Tensor:
        A, B, X, left, right = _saved(ctx)
        solve, adjoint = _both_ways(A, left, right)
        dB = torch.zeros_like(B) if dB is None else dB
        if dA is None:
            return solve(dB)
        dA = dA.to(torch.float64)
        outside = dA.mT @ adjoint(X)
        inside = dB - dA @ X + adjoint(dA.mT @ (B - A @ X)) - A @ outside
        return solve(inside) + outside


def _saved(ctx: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A, B, X, left, right, all in float64: B - A X cancels, and TF32 would round it."""
    A, B, left, right, X = ctx.saved_tensors
    return A.to(torch.float64), B, X, left, right


def _both_ways(
    A: Tensor, left: Tensor, right: Tensor
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Z -> A⁺ Z and Z -> A⁺ᵀ Z, differentiable in A and Z."""
    solver = _solver()
    return (
        lambda Z: solver.apply(A, Z, left, right),
        lambda Z: solver.apply(A.mT, Z, right.mT, left.mT),
    )
