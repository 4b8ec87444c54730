"""Minimum-norm least squares of any rank: the function, the ops behind it, its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fusedstep import _C
from fusedstep.checks import refuse
from fusedstep.fakes import register_fake
from fusedstep.linalg import costs
from fusedstep.linalg._pinv import pinv_now, pinv_op, register_vmap
from fusedstep.linalg.arguments import (
    COMPUTED,
    Limits,
    broadcast_shapes,
    require_matrices,
    require_method,
    tolerances,
)
from fusedstep.linalg.complex_matrices import complex_pinv
from fusedstep.linalg.drivers import Method, factorise
from fusedstep.linalg.numerics import Tolerance
from fusedstep.linalg.transforms import BothModes, records_gradient, reverse_only, unwatched


def lstsq(
    A: Tensor,
    B: Tensor,
    rcond: float | Tensor | None = None,
    *,
    rtol: float | Tensor | None = None,
    driver: str | None = "auto",
    synchronize: bool = True,
) -> Tensor:
    """Finds the X of least norm among those that minimize |A X - B|, for A of any rank.

    torch.linalg.lstsq does this on a CPU only; on CUDA it assumes full rank. The result is computed
    in float64 and rounded once. It is differentiable in A and B any number of times, in reverse and
    forward mode, nested in any order, where the rank is constant; all derivatives use the factors
    of the solution. torch.compile supports reverse mode only. docs/pseudo_inverses.md lists the
    differences from torch.linalg.lstsq.

    Args:
        A: `[*, m, n]`, float32, float64, bfloat16 or float16, of any strides. Also complex64 or
            complex128: torch's own pseudo-inverse in complex128 times B.
        B: `[*, m, k]`, of the same dtype and on the same device; the batches broadcast. Or vectors:
            `[m]`, or `[*, m]` of the shape of A without its last dimension. If that is `[*, m, m]`,
            it may also be one matrix for several A, and is refused.
        rcond: Another name of `rtol`, which may be the third positional argument.
        rtol: Singular values of A not above rtol times the largest count as zero: a number of 0 or
            more, or a tensor that broadcasts with A's batch. Default: eps * max(m, n), as in
            `pinv`.
        driver: "auto", "cholesky", "eigh", "qr_svd" or "jacobi", as in `pinv`. None is "auto",
            which uses torch's gelsd for float64 where that is the fastest (linalg/costs.py).
        synchronize: False: do not read results on the host, as in `pinv`.

    Returns:
        X `[*, n, k]`, or `[*, n]` for vectors, of A's dtype. It is NaN if A has a NaN or an
        infinity, or if the driver failed; the rest of the batch is unaffected.

    Raises:
        TypeError: A or B is not a dense tensor of one of these dtypes, or `rtol` is not a number.
        ValueError: Another argument has an invalid value. The message is
            `lstsq: <argument> must <property>, got <value>`.
        RuntimeError: A is on a GPU and there are no CUDA kernels for it; or torch's decomposition
            of a complex matrix did not converge.

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
    driver = "auto" if driver is None else driver
    require_method(function, A, False, driver, synchronize)
    vectors = _is_vectors(function, A, B)
    given, B = B, B[..., None] if vectors else B
    require_matrices(function, "B", B)
    if B.dtype != A.dtype:
        refuse(function, "B", f"have A's dtype {A.dtype}", B.dtype, TypeError)
    if B.device != A.device:
        refuse(function, "B", f"be on A's device {A.device}", B.device)
    if B.shape[-2] != A.shape[-2]:
        refuse(function, "B", f"have A's {A.shape[-2]} rows", tuple(given.shape))
    if B.shape[:-2] != A.shape[:-2] and not _broadcast(A, B):
        refuse(function, "B", f"broadcast with A's batch {tuple(A.shape[:-2])}", tuple(B.shape))
    limits = tolerances(function, A, None, rtol, rcond)
    X = _solution(A, B, limits, Method(False, driver, synchronize))
    if X.dtype != A.dtype:
        X = X.to(A.dtype)
    return X.squeeze(-1) if vectors else X


def _is_vectors(function: str, A: Tensor, B: Any) -> bool:
    """Whether B holds vectors `[m]` or `[*, m]`, one for each matrix, by torch's rule.

    torch takes `[b, m]` for vectors even if b is m, and NumPy for one matrix that all A share.
    """
    if not isinstance(B, Tensor) or B.dim() < 2:
        return isinstance(B, Tensor) and B.dim() == 1
    if B.shape != A.shape[:-1]:
        return False
    if B.numel() > 1 and B.shape[-2] == A.shape[-2] and _broadcast(A, B):
        must = f"be {[*B.shape, 1]} for vectors or {[1, *B.shape]} for a matrix"
        refuse(function, "B", must, list(B.shape))
    return True


def _broadcast(A: Tensor, B: Tensor) -> bool:
    """Whether the batches of two tensors of matrices do."""
    try:
        broadcast_shapes(A.shape[:-2], B.shape[:-2])
    except RuntimeError:
        return False
    return True


def _solution(A: Tensor, B: Tensor, limits: Limits, method: Method) -> Tensor:
    """A⁺ B, in double precision or rounded once; by one op where nothing watches or records."""
    if A.is_complex():
        P = complex_pinv(A.expand(*limits.batch(A), *A.shape[-2:]), limits.of_each(A), False)
        return P @ B.to(P.dtype)
    if A.dtype not in COMPUTED:
        A, B = A.to(torch.float32), B.to(torch.float32)
    now, tiny = unwatched(A, B), method.takes_tiny(*A.shape[-2:])
    wanted = not now or records_gradient(A, B)
    if not wanted and tiny and limits.are_numbers and _fits_lstsq_tiny(A, B):
        given = A.contiguous(), B.contiguous(), *limits, method.driver == "jacobi"
        return torch.ops.fusedstep.lstsq_tiny.default(*given)  # type: ignore[no-any-return]
    if not wanted and limits.are_numbers and method.takes_small(A) and _fits_lstsq_small(A, B):
        X, proved = torch.ops.fusedstep.lstsq_small.default(A.contiguous(), B.contiguous(), *limits)
        if proved:
            return X  # type: ignore[no-any-return]
    if not wanted and costs.takes_gelsd(A, B, limits) and method.allows_torch(A, B):
        with suppress(torch.linalg.LinAlgError):
            return torch.linalg.lstsq(A, B, rcond=limits.rtol, driver="gelsd").solution  # type: ignore[no-any-return]
    A = A.expand(*limits.batch(A), *A.shape[-2:])
    factors = _factors(A.detach(), limits, method, now)
    B = B.to(torch.float64)
    if A.shape[:-2] != B.shape[:-2]:
        batch = broadcast_shapes(A.shape[:-2], B.shape[:-2])
        A, B = (t.expand(*batch, *t.shape[-2:]) for t in (A, B))
    X = _solver().apply(A, B, *factors) if wanted else _product(*factors, B)
    return X


def _fits_lstsq_tiny(A: Tensor, B: Tensor) -> bool:
    """Whether each matrix has its own few right-hand sides: it is inverted for each set."""
    return A.shape[:-2] == B.shape[:-2] and B.shape[-1] <= _C.TINY


def _fits_lstsq_small(A: Tensor, B: Tensor) -> bool:
    """Whether each matrix has its own few right-hand sides: it is factorized for each set."""
    return A.shape[:-2] == B.shape[:-2] and B.shape[-1] <= min(A.shape[-2:])


@register_fake("lstsq_tiny")
def _(A: Tensor, B: Tensor, atol: float, rtol: float, jacobi: bool) -> Tensor:
    return A.new_empty(*A.shape[:-2], A.shape[-1], B.shape[-1])


@register_fake("lstsq_small")
def _(A: Tensor, B: Tensor, atol: float, rtol: float) -> tuple[Tensor, bool]:
    return A.new_empty(*A.shape[:-2], A.shape[-1], B.shape[-1]), True


def _factors(A: Tensor, limits: Limits, method: Method, now: bool) -> tuple[Tensor, ...]:
    """Float64 tensors whose product is A⁺: itself for small matrices, else two."""
    tiny, tolerance = method.takes_tiny(*A.shape[-2:]), limits.of_each(A)
    if now and not tiny:
        return factors_now(A, tolerance, method, narrow=True)
    arguments: tuple[Any, ...] = (*tolerance, *method)
    if tiny:
        return (pinv_now if now else pinv_op)(A.to(torch.float64), *arguments)[:1]
    factors: tuple[Tensor, Tensor] = pinv_factors(A, *arguments)
    return factors


def _product(*tensors: Tensor) -> Tensor:
    """Of matrices, from the last on: that is the right-hand side."""
    *factors, result = tensors
    for factor in reversed(factors):
        result = factor @ result
    return result


def factors_now(
    A: Tensor, tolerance: Tolerance, method: Method, narrow: bool
) -> tuple[Tensor, Tensor]:
    """Left `[*, n, p]` and right `[*, p, m]`, float64, of which A⁺ `[*, n, m]` is the product.

    p is min(m, n), or at least the largest rank if `narrow`.
    """
    if A.numel() == 0:
        left, right = _factors_of(A)
        return left.zero_(), right.zero_()
    batch = A.shape[:-2]
    flat = A.reshape(-1, *A.shape[-2:])
    left, right, *_ = factorise(flat, tolerance.flat(batch), method, narrow)
    if not batch:
        return left[0], right[0]
    return torch.unflatten(left, 0, batch), torch.unflatten(right, 0, batch)


# For torch.compile, to which it is opaque, and for transforms.
@torch.library.custom_op("fusedstep::pinv_factors", mutates_args=())
def pinv_factors(
    A: Tensor, atol: Tensor, rtol: Tensor, hermitian: bool, driver: str, synchronize: bool
) -> tuple[Tensor, Tensor]:
    """The arguments of `pinv_op`; what `factors_now` returns, as wide as A is."""
    method = Method(hermitian, driver, synchronize)
    return factors_now(A, Tolerance(atol, rtol), method, narrow=False)


register_vmap(pinv_factors)


@pinv_factors.register_fake
def _factors_of(A: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """The uninitialized results of `pinv_factors` for A, with the strides of `factorise`."""
    batch, (m, n) = A.shape[:-2], A.shape[-2:]
    k = min(m, n)

    def factor(*size: int) -> Tensor:
        return A.new_empty(*batch, *size, dtype=torch.float64)

    return factor(n, k) if m >= n else factor(k, n).mT, factor(m, k).mT


def _solver() -> type[Function]:
    return _Solve if reverse_only() else _SolveBothModes


class _Solve(Function):
    """A⁺ B from the factors of A⁺, all in float64 but A, with derivatives from the same factors.

    With R = B - A X, from Golub and Pereyra 1973, equation 4.12, applied to B:
    dX = A⁺ (dB - dA X + A⁺ᵀ dAᵀ R) + (I - A⁺ A) dAᵀ A⁺ᵀ X.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, B: Tensor, *factors: Tensor) -> Tensor:
        return _product(*factors, B)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        A, B, X, factors = _in_float64(ctx.saved_tensors)
        solve, adjoint = _both_ways(A, factors)
        grad_B = adjoint(grad)  # A⁺ᵀ Ḡ
        grad_A = (B - A @ X) @ solve(grad_B).mT - grad_B @ X.mT
        grad_A = grad_A + adjoint(X) @ (grad - A.mT @ grad_B).mT
        return grad_A.to(ctx.saved_tensors[0].dtype), grad_B, *(None for _ in factors)


class _SolveBothModes(BothModes, _Solve):
    generate_vmap_rule = False

    @staticmethod
    def tangent(saved: tuple[Tensor, ...], *tangents: Any) -> Tensor:
        dA, dB, *_ = tangents
        A, B, X, factors = _in_float64(saved)
        solve, adjoint = _both_ways(A, factors)
        dB = torch.zeros_like(B) if dB is None else dB
        if dA is None:
            return solve(dB)
        dA = dA.to(torch.float64)
        outside = dA.mT @ adjoint(X)
        inside = dB - dA @ X + adjoint(dA.mT @ (B - A @ X)) - A @ outside
        dX: Tensor = solve(inside) + outside
        return dX


def _in_float64(saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """A, B, X and the factors, all in float64: B - A X cancels, and TF32 would round it."""
    A, B, *factors, X = saved
    return A.to(torch.float64), B, X, factors


def _both_ways(
    A: Tensor, factors: list[Tensor]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Z -> A⁺ Z and Z -> A⁺ᵀ Z, differentiable in A and Z."""
    solver = _solver()
    return (
        lambda Z: solver.apply(A, Z, *factors),
        lambda Z: solver.apply(A.mT, Z, *(factor.mT for factor in reversed(factors))),
    )
