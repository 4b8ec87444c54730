"""Minimum-norm least squares: against torch's SVD driver, any rank, any shape, any batch."""

from __future__ import annotations

import pytest
import torch

from fusedstep import lstsq, pinv
from tests.support.matrices import UNIT, conditioned, random, relative_error
from tests.support.tensors import LAYOUTS, laid_out, name_of

F64 = torch.float64
both = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
SHAPES = [(30, 8), (8, 30), (12, 12)]
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
