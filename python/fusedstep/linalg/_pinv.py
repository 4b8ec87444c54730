"""The batched pseudo-inverse: the function, the op behind it, its derivatives of every order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd import Function

from fusedstep.checks import refuse, require_bool
from fusedstep.fakes import register_fake
from fusedstep.linalg import costs
from fusedstep.linalg.arguments import (
    COMPUTED,
    Limits,
    require_matrices,
    require_method,
    require_out,
    tolerances,
)
from fusedstep.linalg.complex_matrices import complex_info, complex_pinv
from fusedstep.linalg.drivers import Method, factorise
from fusedstep.linalg.numerics import Tolerance
from fusedstep.linalg.transforms import BothModes, records_gradient, reverse_only, unwatched

CHUNK_BYTES = 2**22  # of A in float64, on a CPU: the steps after the first find it in a cache


class PinvInfo(NamedTuple):
    """Information about each matrix of `pinv`; every tensor has the shape of the batch.

    Attributes:
        rank: Number of singular values above the tolerance, int64; 0 if `code` is not 0.
        code: 0 for success, 1 if an element is NaN or infinite, 2 if the driver failed; int32.
        rcond: Smallest of those singular values over the largest, or a lower bound on that,
            float64; 0 for rank 0, NaN if `code` is not 0.
    """

    rank: Tensor
    code: Tensor
    rcond: Tensor


@overload
def pinv(
    A: Tensor,
    rcond: float | Tensor | None = None,
    hermitian: bool = False,
    *,
    atol: float | Tensor | None = None,
    rtol: float | Tensor | None = None,
    driver: str = "auto",
    return_info: Literal[False] = False,
    synchronize: bool = True,
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def pinv(
    A: Tensor,
    rcond: float | Tensor | None = None,
    hermitian: bool = False,
    *,
    atol: float | Tensor | None = None,
    rtol: float | Tensor | None = None,
    driver: str = "auto",
    return_info: Literal[True],
    synchronize: bool = True,
    out: Tensor | None = None,
) -> tuple[Tensor, PinvInfo]: ...
def pinv(
    A: Tensor,
    rcond: float | Tensor | None = None,
    hermitian: bool = False,
    *,
    atol: float | Tensor | None = None,
    rtol: float | Tensor | None = None,
    driver: str = "auto",
    return_info: bool = False,
    synchronize: bool = True,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, PinvInfo]:
    """Computes the Moore-Penrose pseudo-inverse of each matrix, as torch.linalg.pinv does.

    Everything is computed in float64 and rounded once. Singular values not above
    `max(atol, rtol * sigma_1)` count as zero, where sigma_1 is the matrix's largest. The result is
    differentiable any number of times, in reverse and forward mode, nested in any order, where the
    rank is constant. torch.compile supports reverse mode only. All calls of torch.linalg.pinv and
    torch.pinverse are understood, but for the differences in docs/pseudo_inverses.md.

    Args:
        A: `[*, m, n]`, float32, float64, bfloat16 or float16, of any strides. Also complex64 or
            complex128: torch's own routine computes them in complex128.
        rcond: Another name of `rtol`, which may be the second positional argument.
        hermitian: A is symmetric, or Hermitian: only its lower triangle is read and has a gradient.
        atol: Absolute tolerance, 0 or more: a number, or a tensor that broadcasts with the batch
            `*`. Default: 0.
        rtol: Relative tolerance, like `atol`. Default: 0 if `atol` is positive, else
            `eps * max(m, n)`, with float32's eps for half precision too (128 times bfloat16's own
            is already 1).
        driver: How to factorize; "auto" if A is complex. If `hermitian`, "auto" or "eigh"; both use
            A's own eigenvalues. Otherwise one of

            - "auto", for m, n <= 32: QR if that proves the rank, else "jacobi". For small matrices
              on a CPU (linalg/costs.py) also QR, if that proves it. For larger matrices on a CPU: a
              pivoted Cholesky factorization of the smaller of AᵀA and AAᵀ, which proves a full or a
              deficient rank, after plain ones for float32 with 640 columns or more, which prove
              that few singular values or none count as zero; for float64 it guesses the rank, and
              QR or a step of subspace iteration proves it. On a GPU, or where `synchronize` is
              False: a Cholesky factorization, if that proves full rank; CholeskyQR2 for float64,
              and for float32 with a condition number above 2e4. Where nothing is proved, "qr_svd"
              for float64 and "eigh" for float32; but "qr_svd" if the kept singular values have that
              condition number, or if the tolerance is too small for "eigh". A little float64 work
              on a CPU, of which QR proves nothing, is left to torch's SVD.
            - "cholesky": only the Cholesky factorization. It fails for matrices that it does not
              prove to have full rank.
            - "eigh": the eigenvalues of AᵀA. Singular values below about 1e-7 of the largest count
              as zero, and float64 results err by the square of the condition number.
            - "qr_svd": QR, then the SVD of R.
            - "jacobi": one-sided rotations: the slowest, and the most accurate for small singular
              values.
        return_info: Also return a PinvInfo.
        synchronize: False: do not read results on the host, as CUDA graphs require. For matrices
            larger than 32, "auto" then also runs "qr_svd" on all of them and selects on the device,
            which costs more. Must be True for complex A.
        out: Tensor to write the result to: of the result's shape or empty, on A's device, and of
            A's dtype or one that torch casts it to. Gradients are not recorded through it.

    Returns:
        The pseudo-inverses `[*, n, m]`, of A's dtype, and with `return_info` a PinvInfo. The batch
        is that of A, broadcast with those of the tolerances. The result is NaN for a matrix with a
        NaN or an infinity, and if the driver failed; the rest of the batch is unaffected.

    Raises:
        TypeError: A is not a dense tensor of one of these dtypes, or a tolerance is not a number.
        ValueError: Another argument has an invalid value. The message is
            `pinv: <argument> must <property>, got <value>`.
        RuntimeError: A is on a GPU and there are no CUDA kernels for it; or torch's decomposition
            of a complex matrix did not converge.

    Example:
        >>> A = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
        >>> fusedstep.pinv(A)
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.2500]])
        >>> P, info = fusedstep.pinv(A, rtol=0.5, return_info=True)
        >>> info.rank
        tensor(1)

    Source: G. H. Golub and V. Pereyra 1973, "The differentiation of pseudo-inverses and nonlinear
    least squares problems whose variables separate", equation 4.12, for the derivatives; see
    linalg/drivers.py for the drivers.
    """
    function = "pinv"
    require_matrices(function, "A", A)
    require_method(function, A, hermitian, driver, synchronize)
    require_bool(function, "return_info", return_info)
    if hermitian and A.shape[-1] != A.shape[-2]:
        refuse(function, "A", "be square where hermitian=True", tuple(A.shape))
    limits = tolerances(function, A, atol, rtol, rcond)
    if out is not None:
        require_out(function, out, A, (*limits.batch(A), A.shape[-1], A.shape[-2]))
    info: tuple[Tensor, ...] = ()
    if A.is_complex():
        wide = A.expand(*limits.batch(A), *A.shape[-2:])
        P = complex_pinv(wide, limits.of_each(A), hermitian)
        info = complex_info(wide, limits.of_each(A), hermitian) if return_info else ()
    else:
        wide = A if A.dtype in COMPUTED else A.to(torch.float32)
        P, info = _inverse(wide, limits, Method(hermitian, driver, synchronize), return_info)
    if P.dtype != A.dtype:
        P = P.to(A.dtype)
    if out is not None:
        P = (out if out.shape == P.shape else out.resize_(P.shape)).copy_(P)
    return (P, PinvInfo(*info)) if return_info else P


def _inverse(
    A: Tensor, limits: Limits, method: Method, return_info: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A⁺ of float32 or float64 A, differentiable, and where wanted its information."""
    now = unwatched(A)
    info: tuple[Tensor, ...] = ()
    alone = now and not return_info and limits.are_numbers
    P: Tensor | None = None
    if alone and method.takes_tiny(*A.shape[-2:]):
        P = pinv_tiny(A, limits, method)
    elif alone and method.takes_small(A):
        P = pinv_small(A, limits)
    if P is None and alone and costs.takes_svd(A) and method.allows_torch(A):
        with suppress(torch.linalg.LinAlgError):
            P = torch.linalg.pinv(A.detach(), atol=limits.atol, rtol=limits.rtol)
    if P is None:
        A = A.expand(*limits.batch(A), *A.shape[-2:])
        if method.hermitian:
            A = A.tril() + A.tril(-1).mT
        arguments: tuple[Any, ...] = (A.detach(), *limits.of_each(A), *method)
        P, *of_each = (pinv_now if now else pinv_op)(*arguments)
        info = tuple(of_each)
    if not now:
        P = (_Backward if reverse_only() else _BothModes).apply(A, P)
    elif records_gradient(A):
        P = _BothModes.apply(A, P)
    return P, info


def pinv_tiny(A: Tensor, limits: Limits, method: Method) -> Tensor:
    """A⁺ by the kernel of tiny matrices: one op, for tolerances that are numbers."""
    jacobi = method.driver == "jacobi"
    given = A.detach() if A.requires_grad else A
    P: Tensor = torch.ops.fusedstep.pinv_tiny.alike(given.contiguous(), *limits, jacobi)
    return P


def pinv_small(A: Tensor, limits: Limits) -> Tensor | None:
    """A⁺ by the kernel of small matrices, also one op; None where it does not prove the rank."""
    given = A.detach() if A.requires_grad else A
    P, proved = torch.ops.fusedstep.pinv_small.default(given.contiguous(), *limits)
    return P if proved else None


def pinv_now(
    A: Tensor, atol: Tensor, rtol: Tensor, hermitian: bool, driver: str, synchronize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A `[*, m, n]`, float32 or float64; atol, rtol `[*]`, float64.

    Returns A⁺ `[*, n, m]` of A's dtype, and for each matrix the rank (int64), the convergence code
    (int32) and rcond (float64).
    """
    if A.numel() == 0:
        P, rank, code, rcond = _results_of(A)
        return P, rank.zero_(), code.zero_(), rcond.zero_()
    batch, (m, n), method = A.shape[:-2], A.shape[-2:], Method(hermitian, driver, synchronize)
    flat, tolerance = A.reshape(-1, m, n), Tolerance(atol, rtol).flat(batch)
    if method.takes_tiny(m, n):
        P, *info = torch.ops.fusedstep.pinv_tiny(flat.contiguous(), *tolerance, driver == "jacobi")
        rank, code, rcond = (of_each.view(batch) for of_each in info)
        return P.view(*batch, n, m), rank, code, rcond
    chunk = len(flat) if A.is_cuda else max(1, CHUNK_BYTES // (8 * m * n))
    if len(flat) <= chunk:
        left, right, *info = factorise(flat, tolerance, method, narrow=True)
        rank, code, rcond = (of_each.view(batch) for of_each in info)
        return torch.bmm(left, right).to(A.dtype).view(*batch, n, m), rank, code, rcond
    results = _results_of(A)
    into = (results[0].view(-1, n, m), *(result.view(-1) for result in results[1:]))
    for begin in range(0, len(flat), chunk):
        part = slice(begin, begin + chunk)
        left, right, *info = factorise(flat[part], tolerance.of(part), method, narrow=True)
        for whole, values in zip(into, (torch.bmm(left, right), *info), strict=True):
            whole[part] = values
    return results


# The same for torch.compile, to which it is opaque, and for transforms.
pinv_op = torch.library.custom_op("fusedstep::pinv", pinv_now, mutates_args=())


def register_vmap(op: Any) -> None:
    """Makes the mapped dimension one more of the batch, for ops of A, atol, rtol and a method."""

    def mapped(
        info: Any, in_dims: tuple[int | None, ...], A: Tensor, *rest: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        A, atol, rtol = (
            t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((A, *rest[:2]), in_dims, strict=False)
        )
        results = op(A.expand(info.batch_size, *A.shape[1:]), atol, rtol, *rest[2:])
        return results, (0,) * len(results)

    op.register_vmap(mapped)


register_vmap(pinv_op)


def _results_of(A: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The uninitialized results of `pinv_op` for A."""
    batch, (m, n) = A.shape[:-2], A.shape[-2:]
    rank, code = (A.new_empty(batch, dtype=kind) for kind in (torch.int64, torch.int32))
    return A.new_empty(*batch, n, m), rank, code, A.new_empty(batch, dtype=torch.float64)


pinv_op.register_fake(_results_of)


@register_fake("pinv_tiny")
def _(A: Tensor, atol: Tensor, rtol: Tensor, jacobi: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _results_of(A)


@register_fake("pinv_tiny.alike")
def _(A: Tensor, atol: float, rtol: float, jacobi: bool) -> Tensor:
    return A.new_empty(*A.shape[:-2], A.shape[-1], A.shape[-2])


@register_fake("pinv_small")
def _(A: Tensor, atol: float, rtol: float) -> tuple[Tensor, bool]:
    # True is never looked at: tracers are kept from this op (linalg/transforms.py).
    return A.new_empty(*A.shape[:-2], A.shape[-1], A.shape[-2]), True


class _Backward(Function):
    """P unchanged, with the derivatives of A⁺."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, P: Tensor) -> Tensor:
        return P.view_as(P)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        A, P = ctx.saved_tensors
        return _in_float64(_vjp, A, P, grad), None


class _BothModes(BothModes, _Backward):
    generate_vmap_rule = False

    @staticmethod
    def tangent(saved: tuple[Tensor, ...], *tangents: Any) -> Tensor:
        A, P = saved
        dA, _ = tangents
        return _in_float64(_jvp, A, P, dA)


def _in_float64(
    formula: Callable[[Tensor, Tensor, Tensor], Tensor], A: Tensor, P: Tensor, direction: Tensor
) -> Tensor:
    """Differences such as A - A P A cancel, and no product may be rounded to TF32."""
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
