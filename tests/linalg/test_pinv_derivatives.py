"""Derivatives of pinv: both modes, any order, any rank, under vmap and torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fusedstep import pinv
from fusedstep.linalg._lstsq import pinv_factors
from fusedstep.linalg._pinv import pinv_op
from tests.support.tensors import name_of

F64 = torch.float64
DRIVERS = ["cholesky", "qr_svd", "jacobi"]
SHAPES = [(5, 3), (3, 5), (4, 4), (2, 4, 2), (2, 2, 4)]
ONE_MATRIX = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=F64, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize(
    ("driver", "shape"),
    [*(("auto", s) for s in SHAPES), *((d, s) for d in DRIVERS for s in SHAPES[:2])],
    ids=str,
)
def test_full_rank(shape, driver) -> None:
    A = random(*shape)
    modes = {"check_forward_ad": True, "check_batched_grad": True}
    assert gradcheck(lambda A: pinv(A, driver=driver), A, **modes, check_batched_forward_grad=True)
    assert gradgradcheck(lambda A: pinv(A, driver=driver), A, check_fwd_over_rev=True)


@pytest.mark.parametrize("options", [{}, {"driver": "jacobi"}, {"synchronize": False}], ids=str)
def test_along_matrices_of_one_deficient_rank(options) -> None:
    L, R = random(5, 2), random(2, 4, seed=1)
    assert gradcheck(lambda L, R: pinv(L @ R, **options), (L, R), check_forward_ad=True)
    assert gradgradcheck(lambda L, R: pinv(L @ R, **options), (L, R), check_fwd_over_rev=True)


def test_hermitian_has_its_gradient_in_the_lower_triangle() -> None:
    A = random(4, 4)
    assert gradcheck(lambda A: pinv(A, hermitian=True), A, check_forward_ad=True)
    assert gradgradcheck(lambda A: pinv(A, hermitian=True), A)
    (grad,) = torch.autograd.grad(pinv(A, hermitian=True).square().sum(), A)
    assert not grad.triu(1).any()


def test_third_derivatives() -> None:
    A = random(3, 2)

    def gradient(A):
        return torch.autograd.grad(pinv(A).sin().sum(), A, create_graph=True)[0]

    assert gradgradcheck(gradient, A)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)], ids=str)
def test_gradients_are_torchs(shape) -> None:
    for dtype, tolerance in ((F64, 1e-10), (torch.float32, 1e-4)):
        A = random(3, *shape).detach().to(dtype).requires_grad_()
        weight = random(3, *shape[::-1], seed=1).detach().to(dtype)
        ours, theirs = (
            torch.autograd.grad((f(A) * weight).sum(), A)[0] for f in (pinv, torch.linalg.pinv)
        )
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_half_precision_has_gradients() -> None:
    A = random(8, 3).detach().bfloat16().requires_grad_()
    pinv(A).sum().backward()
    assert A.grad.dtype == torch.bfloat16
    wide = A.detach().float().requires_grad_()
    pinv(wide).bfloat16().sum().backward()
    torch.testing.assert_close(A.grad, wide.grad.bfloat16())


def test_a_batch_made_by_tolerances_sums_its_gradients() -> None:
    A = random(5, 3)
    rtol = torch.tensor([0.0, 1e-3, 1e-2])
    assert pinv(A, rtol=rtol).shape == (3, 3, 5)
    assert gradcheck(lambda A: pinv(A, rtol=rtol), A)


def test_function_transforms() -> None:
    A = random(3, 5, 2).detach()
    stacked = torch.stack([pinv(a) for a in A])
    torch.testing.assert_close(torch.vmap(pinv)(A), stacked)
    torch.testing.assert_close(torch.vmap(pinv, in_dims=2)(A.movedim(0, 2)), stacked)
    rtol = torch.tensor([0.0, 0.2, 0.9], dtype=F64)
    mapped = torch.vmap(lambda a, r: pinv(a, rtol=r))(A, rtol)
    torch.testing.assert_close(mapped, pinv(A, rtol=rtol))
    mapped = torch.vmap(lambda r: pinv(A, rtol=r))(rtol)
    torch.testing.assert_close(mapped, torch.stack([pinv(A, rtol=float(r)) for r in rtol]))

    def loss(a):
        return pinv(a).sin().sum()

    a = A[0]
    by_rows, by_columns = torch.func.jacrev(pinv)(a), torch.func.jacfwd(pinv)(a)
    torch.testing.assert_close(by_rows, by_columns)
    hessian = torch.autograd.functional.hessian(loss, a)
    torch.testing.assert_close(torch.func.hessian(loss)(a), hessian)
    per_sample = torch.vmap(torch.func.grad(loss))(A)
    torch.testing.assert_close(per_sample[0], torch.func.grad(loss)(a))


@pytest.mark.parametrize("options", [{}, {"synchronize": False}, {"hermitian": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
def test_compiled_whole_with_its_gradient(options, dtype) -> None:
    def loss(A):
        P, info = pinv(A, return_info=True, **options)
        return P.sin().sum() + info.rank.sum()

    A = random(2, 4, 4, dtype=dtype)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager = loss(A)
    torch.testing.assert_close(compiled(A), eager)
    ours, expected = (torch.autograd.grad(f(A), A)[0] for f in (compiled, loss))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "A",
    [
        ONE_MATRIX,
        ONE_MATRIX.mT,
        ONE_MATRIX.mT.contiguous().float(),
        ONE_MATRIX.expand(2, 3, 5, 3),
        torch.zeros(2, 4, 3),
        torch.ones(2, 3, 4),
        torch.zeros(0, 3, 4),
        torch.zeros(2, 3, 0),
    ],
    ids=lambda A: f"{tuple(A.shape)} {A.dtype}",
)
@pytest.mark.parametrize("driver", ["auto", "qr_svd", "jacobi"])  # the check takes NaN for a fault
def test_the_op_keeps_the_contract_of_ops(A, driver) -> None:
    """Its results have the shapes, dtypes and strides that its fake says, by every driver."""
    tolerance = torch.full(A.shape[:-2], 1e-6, dtype=F64)
    for synchronize in (True, False) if driver == "jacobi" else (True,):
        arguments = (A, tolerance, tolerance, False, driver, synchronize)
        torch.library.opcheck(pinv_op, arguments)
        torch.library.opcheck(pinv_factors, arguments)


@pytest.mark.parametrize("A", [ONE_MATRIX, torch.ones(2, 3, 4)], ids=str)
def test_the_op_keeps_it_where_nothing_is_read(A) -> None:
    tolerance = torch.full(A.shape[:-2], 1e-6, dtype=F64)
    arguments = (A, tolerance, tolerance, False, "auto", False)
    torch.library.opcheck(pinv_op, arguments)
    torch.library.opcheck(pinv_factors, arguments)
