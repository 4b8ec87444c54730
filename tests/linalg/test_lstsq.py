"""Minimum-norm least squares of any rank: against the SVD driver of torch; its derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fusedstep import lstsq, pinv
from fusedstep.linalg import drivers
from tests.support.matrices import UNIT, conditioned, random, relative_error
from tests.support.tensors import LAYOUTS, laid_out, name_of

F64 = torch.float64
both = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
SHAPES = [(30, 8), (8, 30), (12, 12), (50, 8), (8, 50), (40, 40)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
@both
@pytest.mark.parametrize("rank", [None, 5, 1, 0])
@pytest.mark.parametrize("options", [{}, {"driver": "jacobi"}, {"synchronize": False}], ids=str)
def test_the_shortest_of_the_best(shape, dtype, rank, options) -> None:
    """LAPACK's gelsd in float64 is the oracle; torch has it on the CPU alone."""
    A = torch.zeros(shape) if rank == 0 else conditioned(*shape, 20.0, rank)
    A, B = A.to(dtype), random(shape[0], 3, seed=1).to(dtype)
    X = lstsq(A, B, **options)
    rtol = torch.finfo(dtype).eps * max(shape)
    truth = torch.linalg.lstsq(A.double(), B.double(), rcond=rtol, driver="gelsd").solution
    assert X.dtype == dtype
    torch.testing.assert_close(X.double(), truth, rtol=1e4 * UNIT[dtype], atol=1e3 * UNIT[dtype])


@both
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_never_worse_than_torch(dtype, condition) -> None:
    """For float64 within the few units that two good methods differ by."""
    A = conditioned(200, 10, condition, seed=2).to(dtype)
    B = random(200, 4, seed=3).to(dtype)
    truth = torch.linalg.lstsq(A.double(), B.double(), driver="gelsd").solution
    ours = relative_error(lstsq(A, B, rtol=1e-8), truth)
    if dtype == torch.float32:
        theirs = torch.linalg.lstsq(A, B, rcond=1e-8, driver="gelsd").solution
        assert ours <= max(relative_error(theirs, truth), UNIT[dtype])
    else:
        assert ours <= 100 * condition * UNIT[dtype]


@shapes
def test_it_is_the_pseudo_inverse_times_the_right_hand_side(shape) -> None:
    A, B = random(2, 3, *shape), random(2, 3, shape[0], 4, seed=1)
    torch.testing.assert_close(lstsq(A, B), pinv(A) @ B)


def test_batches_broadcast() -> None:
    A, B = random(3, 1, 6, 4), random(2, 6, 5, seed=1)
    torch.testing.assert_close(lstsq(A, B), pinv(A) @ B)
    torch.testing.assert_close(lstsq(A[0, 0], B), pinv(A[0, 0]) @ B)
    torch.testing.assert_close(lstsq(A, B[0]), pinv(A) @ B[0])


def test_the_tolerance_decides_the_rank() -> None:
    A = torch.diag(torch.tensor([1.0, 0.5, 0.1]))
    B = torch.ones(3, 1)
    assert lstsq(A, B, rtol=0.5).flatten().tolist() == [1, 0, 0]
    assert lstsq(A, B, rtol=0.4).flatten().tolist() == [1, 2, 0]
    several = lstsq(A, B, rtol=torch.tensor([0.5, 0.4, 0.0]))
    torch.testing.assert_close(several[..., 0], torch.tensor([[1.0, 0, 0], [1, 2, 0], [1, 2, 10]]))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3), (0, 4, 3)], ids=str)
@pytest.mark.parametrize("columns", [0, 2])
def test_empty_problems(shape, columns) -> None:
    A = torch.ones(shape, requires_grad=True)
    X = lstsq(A, torch.ones(*shape[:-1], columns))
    assert torch.equal(X, torch.zeros(*shape[:-2], shape[-1], columns))
    X.sum().backward()
    assert A.grad.shape == shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_numbers(layout) -> None:
    A, B = random(3, 6, 4), random(3, 6, 2, seed=1)
    torch.testing.assert_close(lstsq(laid_out(A, layout), laid_out(B, layout)), lstsq(A, B))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_half_precision_is_computed_wider_and_rounded_once(dtype) -> None:
    A, B = random(20, 4).to(dtype), random(20, 2, seed=1).to(dtype)
    assert torch.equal(lstsq(A, B), lstsq(A.float(), B.float()).to(dtype))


def test_a_right_hand_side_that_is_not_finite_stays_in_its_column() -> None:
    A, B = random(6, 3), random(6, 3, seed=1)
    B[2, 1] = float("nan")
    assert lstsq(A, B).isnan().all(0).tolist() == [False, True, False]
    assert lstsq(A, B).isnan().any(0).tolist() == [False, True, False]


def leaf(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=F64, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        *(((5, 3), {}), ((3, 5), {}), ((4, 4), {}), ((2, 4, 2), {})),
        *(((5, 3), {"driver": "jacobi"}), ((3, 5), {"synchronize": False})),
    ],
    ids=str,
)
def test_derivatives_at_full_rank(shape, options) -> None:
    inputs = leaf(*shape), leaf(*shape[:-1], 2, seed=1)

    def solve(A, B):
        return lstsq(A, B, **options)

    modes = {"check_forward_ad": True, "check_batched_grad": True}
    assert gradcheck(solve, inputs, **modes, check_batched_forward_grad=True)
    assert gradgradcheck(solve, inputs, check_fwd_over_rev=True)


def test_derivatives_along_matrices_of_one_deficient_rank() -> None:
    inputs = leaf(5, 2), leaf(2, 4, seed=1), leaf(5, 3, seed=2)

    def solve(L, R, B):
        return lstsq(L @ R, B)

    assert gradcheck(solve, inputs, check_forward_ad=True)
    assert gradgradcheck(solve, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["of A", "of B"])
def test_derivatives_of_one_argument_alone(wanted) -> None:
    A, B = leaf(5, 3).detach(), leaf(5, 2, seed=1).detach()
    inputs = tuple(t.requires_grad_(w) for t, w in zip((A, B), wanted, strict=True))
    assert gradcheck(lstsq, inputs, check_forward_ad=True)
    assert gradgradcheck(lstsq, inputs)


def test_broadcast_batches_sum_their_gradients() -> None:
    assert gradcheck(lstsq, (leaf(4, 2), leaf(3, 4, 1, seed=1)), check_forward_ad=True)
    assert gradcheck(lstsq, (leaf(3, 1, 4, 2), leaf(2, 4, 1, seed=1)))


def test_gradients_are_those_through_the_pseudo_inverse() -> None:
    for dtype, tolerance in ((F64, 1e-10), (torch.float32, 1e-4)):
        A = leaf(2, 30, 5).detach().to(dtype).requires_grad_()
        B = leaf(2, 30, 3, seed=1).detach().to(dtype).requires_grad_()
        ours = torch.autograd.grad(lstsq(A, B).sin().sum(), (A, B))
        theirs = torch.autograd.grad((pinv(A) @ B).sin().sum(), (A, B))
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_derivatives_use_the_factors_of_the_solution(monkeypatch) -> None:
    calls = []
    honest = drivers.qr
    monkeypatch.setattr(drivers, "qr", lambda *a: calls.append(1) or honest(*a))
    A, B = leaf(35, 3), leaf(35, 2, seed=1)
    grads = torch.autograd.grad(lstsq(A, B).sin().sum(), (A, B), create_graph=True)
    torch.autograd.grad(sum(g.square().sum() for g in grads), (A, B))
    assert len(calls) == 1


def test_function_transforms() -> None:
    A, B = leaf(3, 5, 2).detach(), leaf(3, 5, 4, seed=1).detach()
    torch.testing.assert_close(torch.vmap(lstsq)(A, B), lstsq(A, B))
    torch.testing.assert_close(torch.vmap(lstsq, in_dims=(None, 0))(A[0], B), lstsq(A[0], B))
    torch.testing.assert_close(torch.vmap(lstsq, in_dims=(0, None))(A, B[0]), lstsq(A, B[0]))
    both = torch.func.jacrev(lstsq, argnums=(0, 1)), torch.func.jacfwd(lstsq, argnums=(0, 1))
    torch.testing.assert_close(*(jacobian(A[0], B[0]) for jacobian in both))
    per_sample = torch.vmap(torch.func.grad(lambda a, b: lstsq(a, b).sin().sum()))(A, B)
    whole = torch.func.grad(lambda a: lstsq(a, B).sin().sum())(A)
    torch.testing.assert_close(per_sample, whole)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
def test_compiled_whole_with_its_gradients(dtype) -> None:
    def loss(A, B):
        return lstsq(A, B).sin().sum()

    inputs = leaf(2, 4, 3, dtype=dtype), leaf(2, 4, 2, seed=1, dtype=dtype)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))
    ours, expected = (torch.autograd.grad(f(*inputs), inputs) for f in (compiled, loss))
    torch.testing.assert_close(ours, expected)
