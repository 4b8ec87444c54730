"""Pseudo-inverses of small matrices on a CPU, by one op: accuracy, ranks, proofs, bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import fusedstep
from fusedstep.linalg import costs
from tests.support.matrices import (
    UNIT,
    conditioned,
    random,
    refined_pinv,
    relative_error,
    true_pinv,
)
from tests.support.matrices import with_singular_values as with_sigma
from tests.support.tensors import assert_same_bits, name_of, threads

pinv_op = torch.ops.fusedstep.pinv_small.default
lstsq_op = torch.ops.fusedstep.lstsq_small.default
F64 = torch.float64
SHAPES = (
    (64, 64),
    (100, 100),
    (200, 50),
    (50, 200),
    (37, 33),
    (33, 47),
    (300, 5),
    (1, 90),
    (90, 1),
)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
both = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)


def eps(A: Tensor) -> float:
    return torch.finfo(A.dtype).eps * max(A.shape[-2:])


def right_sides(A: Tensor, columns: int = 7) -> Tensor:
    return random(*A.shape[:-1], columns, seed=8).to(A.dtype)


def found(A: Tensor, rtol: float, atol: float = 0.0) -> Tensor:
    """A⁺, proved; the solutions of many right-hand sides are that times them."""
    P, proved = pinv_op(A, atol, rtol)
    assert proved
    for columns in (1, 4, 7):
        B = right_sides(A, columns)
        X, proved = lstsq_op(A, B, atol, rtol)
        assert proved
        assert X.shape == (*A.shape[:-2], A.shape[-1], columns)
        wanted = P.double() @ B.double()
        size = float(P.double().norm() * B.double().norm())
        condition = float(P.double().norm() * A.double().norm()) if A.dtype == F64 else 1.0
        assert float((X - wanted).norm()) <= 8 * max(condition, 1.0) * UNIT[A.dtype] * size
    return P


@shapes
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6, 1e8, 1e10])
def test_float64_loses_one_condition_number(shape, condition) -> None:
    A = conditioned(*shape, condition, seed=4)
    condition = condition if min(shape) > 1 else 1.0
    P = found(A, eps(A))
    truth = refined_pinv(A)
    ours = relative_error(P, truth)
    theirs = relative_error(torch.linalg.pinv(A), truth)
    bound = 10 * condition * UNIT[F64] * min(shape) ** 0.5
    assert ours <= max(4 * theirs, bound)
    one = torch.eye(min(shape), dtype=F64)
    product = P @ A if shape[0] >= shape[1] else A @ P
    assert float((product - one).norm()) <= 10 * bound


@shapes
@pytest.mark.parametrize("part", [0.9, 0.5, 0.1])
@pytest.mark.parametrize(
    ("dtype", "condition"), [(torch.float32, 1.0), (torch.float32, 10.0), (F64, 1.0), (F64, 1e3)]
)
def test_deficient_ranks(shape, dtype, part, condition) -> None:
    """Float32's own rounding leaves too much beside what is kept for larger condition numbers."""
    rank = max(1, round(part * min(shape)))
    A = conditioned(*shape, condition, rank, seed=5).to(dtype)
    P = found(A, eps(A))
    truth = true_pinv(A, eps(A))
    assert relative_error(P, truth) <= 100 * condition * UNIT[dtype]
    if dtype == torch.float32:
        assert relative_error(P, truth) <= UNIT[dtype]  # rounded once
    assert torch.linalg.matrix_rank(P.double(), rtol=eps(A)) == rank


@shapes
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_float32_is_rounded_once(shape, condition) -> None:
    A = conditioned(*shape, condition, seed=3).float()
    assert relative_error(found(A, 1e-8), true_pinv(A, 1e-8)) <= UNIT[torch.float32]


@pytest.mark.parametrize(
    ("dtype", "gap", "proves"),
    [
        *[(F64, 1e-11, True), (F64, 1e-9, False), (F64, 1e-6, False), (F64, 1e-2, False)],
        *[(torch.float32, 1e-7, True), (torch.float32, 3e-6, False), (torch.float32, 1e-2, False)],
    ],
)
def test_what_is_cut_off_does_not_turn_what_is_kept(dtype, gap, proves) -> None:
    """It is so small that its square is rounded away, or others find the inverse."""
    sigma = torch.cat([torch.linspace(1, 0.5, 30), torch.full((25,), gap)]).double()
    A = with_sigma(80, 55, sigma, seed=2).to(dtype)
    truth = true_pinv(A, 30 * gap)
    P, proved = pinv_op(A, 0.0, 30 * gap)
    assert proved == proves
    if proved:
        assert relative_error(P, truth) <= 50 * UNIT[dtype]
    assert relative_error(fusedstep.pinv(A, rtol=30 * gap), truth) <= 50 * UNIT[dtype]


@pytest.mark.parametrize("beside", [0.5, 0.9, 1.1, 2.0])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_tolerance_means_what_it_says(beside, absolute) -> None:
    """sigma counts as zero unless above max(atol, rtol * sigma_1), whoever finds the rank."""
    sigma = torch.cat([torch.linspace(3, 1, 39), torch.tensor([3e-3 * beside])]).to(F64)
    options = {"atol": 3e-3} if absolute else {"rtol": 1e-3}
    for seed in range(3):
        A = with_sigma(70, 40, sigma, seed)
        truth = torch.linalg.pinv(A, **options)
        torch.testing.assert_close(fusedstep.pinv(A, **options), truth, rtol=1e-9, atol=1e-9)
        assert pinv_op(A, options.get("atol", 0.0), options.get("rtol", 0.0))[1] == (
            absolute and beside > 1
        )


@both
@pytest.mark.parametrize("rtol", [1.0, 2.0, math.inf])
def test_a_tolerance_that_leaves_nothing(dtype, rtol) -> None:
    A = conditioned(50, 40, 10.0).to(dtype)
    assert (fusedstep.pinv(A, rtol=rtol) == 0).all()
    assert (fusedstep.lstsq(A, right_sides(A), rtol=rtol) == 0).all()
    P, proved = pinv_op(A, 1e9, 0.0)
    assert proved
    assert (P == 0).all()


@both
def test_zero_and_what_is_not_finite(dtype) -> None:
    A = conditioned(50, 40, 10.0).to(dtype).expand(4, 50, 40).clone()
    A[0] = 0
    A[1, 49, 39] = math.nan
    A[2, 0, 0] = -math.inf
    B = right_sides(A)
    for matrices, sides in ((A, B), (A.mT.contiguous(), right_sides(A.mT))):
        P, proved = pinv_op(matrices, 0.0, 1e-6)
        X, solved = lstsq_op(matrices, sides, 0.0, 1e-6)
        assert proved
        assert solved
        for result, alone in (
            (P, pinv_op(matrices[3], 0.0, 1e-6)[0]),
            (X, lstsq_op(matrices[3], sides[3], 0.0, 1e-6)[0]),
        ):
            assert (result[0] == 0).all()
            assert not result[0].signbit().any()
            assert result[1:3].isnan().all()
            assert_same_bits(result[3], alone)
    B[3, 7, 2] = math.nan
    X, _ = lstsq_op(A, B, 0.0, 1e-6)
    assert X[3].isnan().any(0).nonzero().flatten().tolist() == [2]
    assert X[3, :, 2].isnan().all()


@pytest.mark.parametrize("exponent", [-1060, -1000, -300, 300, 1000, 1020])
def test_any_size_of_float64(exponent) -> None:
    A = conditioned(45, 40, 10.0, seed=6)
    scaled = A * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
    P = fusedstep.pinv(scaled)
    wanted = pinv_op(A, 0.0, eps(A))[0]
    if exponent >= -1000:
        back = P * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
        torch.testing.assert_close(back, wanted, rtol=1e-12, atol=1e-12)
    else:
        assert not P.isnan().any()


@both
def test_the_same_bits_on_any_number_of_threads(dtype) -> None:
    A = random(9, 60, 40, seed=1).to(dtype)
    A[1::2, :, 20:] = A[1::2, :, :20]
    B = right_sides(A)
    results = []
    for count in (1, 3):
        with threads(count):
            results.append((pinv_op(A, 0.0, 1e-6)[0], lstsq_op(A, B, 0.0, 1e-6)[0]))
    for one, many in zip(*results, strict=True):
        assert_same_bits(one, many)
    for i in range(len(A)):
        assert_same_bits(results[0][0][i], pinv_op(A[i], 0.0, 1e-6)[0])


def test_who_takes_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """One op where nothing more is asked; torch and the drivers where it proves nothing."""
    taken = []
    takes_svd, takes_gelsd = costs.takes_svd, costs.takes_gelsd
    monkeypatch.setattr(costs, "takes_svd", lambda A: taken.append("svd") or takes_svd(A))
    monkeypatch.setattr(
        costs, "takes_gelsd", lambda *given: taken.append("gelsd") or takes_gelsd(*given)
    )
    A, B = conditioned(64, 40, 10.0), random(64, 2)
    for given in (A, A.float(), A.mT.contiguous().mT, A[None].expand(3, 64, 40)):
        fusedstep.pinv(given)
        fusedstep.lstsq(given, B.to(given.dtype).expand(*given.shape[:-1], 2))
    A.requires_grad_()
    P = fusedstep.pinv(A)
    assert P.requires_grad
    assert taken == []
    sigma = torch.linspace(1, 0, 40).double()  # the next is too near to the tolerance
    near = with_sigma(64, 40, sigma)
    fusedstep.pinv(near, rtol=0.5)
    fusedstep.lstsq(near, B, rtol=0.5)
    assert taken == ["svd", "gelsd"]


@pytest.mark.parametrize("shape", [(0, 40), (40, 0), (0, 40, 50)], ids=str)
def test_empty(shape) -> None:
    A = torch.empty(shape, dtype=F64)
    assert pinv_op(A, 0.0, 0.0)[0].shape == A.mT.shape
    X, proved = lstsq_op(A, torch.ones(*shape[:-1], 3, dtype=F64), 0.0, 0.0)
    assert proved
    assert (X == 0).all()
    assert fusedstep.pinv(A).shape == A.mT.shape


def test_opcheck() -> None:
    A = conditioned(40, 35, 10.0)
    opcheck(pinv_op, (A, 0.0, 1e-9))
    opcheck(lstsq_op, (A, random(40, 3), 0.0, 1e-9))


def test_the_ops_check_their_arguments() -> None:
    A = torch.ones(40, 35, dtype=F64)
    for call, message in (
        (lambda: pinv_op(A.half(), 0.0, 0.0), "pinv_small: A must be a dense float32 or float64"),
        (lambda: pinv_op(A.mT, 0.0, 0.0), "pinv_small: A must be contiguous"),
        (lambda: pinv_op(A, -1.0, 0.0), "pinv_small: atol must be 0 or more"),
        (lambda: pinv_op(A, 0.0, math.nan), "pinv_small: rtol must be 0 or more"),
        (lambda: lstsq_op(A, A[1:].contiguous(), 0.0, 0.0), "lstsq_small: B must have A's sizes"),
        (lambda: lstsq_op(A, A.float(), 0.0, 0.0), "lstsq_small: B must be a dense float64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
