"""Large float32 matrices of which no or few singular values count as zero: the proofs against
float64 SVDs, next to the tolerance, what is left to other drivers, and that "auto" takes it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fusedstep import lstsq, pinv
from fusedstep.linalg import costs, drivers
from fusedstep.linalg._lstsq import pinv_factors
from fusedstep.linalg.nearly_full import BLOCK, nearly_full
from fusedstep.linalg.numerics import SQUARE_LIMIT, Factors, Tolerance, Verdict, gram
from tests.support.matrices import (
    UNIT,
    conditioned,
    random,
    relative_error,
    true_pinv,
    with_singular_values,
)

F64 = torch.float64
RTOL = 1e-4
SHAPES = ((150, 150), (250, 150))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def found(A: Tensor, rtol: float, atol: float = 0.0) -> tuple[Factors, Verdict] | None:
    """What there is for one matrix."""
    tolerance = Tolerance(torch.tensor([atol], dtype=F64), torch.tensor([rtol], dtype=F64))
    result = nearly_full(gram(A[None]), A[None], tolerance)
    return None if result is None else (result[0], Verdict(int(result[1])))


def with_zeros(m: int, n: int, zeros: int, above: float = 3.0, below: float = 0.5) -> Tensor:
    """Singular values from 1 down to `above` times RTOL, and some from `below` times RTOL on."""
    kept = 10.0 ** torch.linspace(0, math.log10(RTOL * above), min(m, n) - zeros, dtype=F64)
    small = RTOL * below * 0.7 ** torch.arange(zeros, dtype=F64)
    return with_singular_values(m, n, torch.cat([kept, small]), seed=zeros).float()


def assert_right(A: Tensor, factors: Factors, rtol: float) -> None:
    sigma = torch.linalg.svdvals(A.double())
    kept = int((sigma > rtol * sigma[0]).sum())
    assert factors.done
    assert factors.rank == kept
    true_rcond = float(sigma[kept - 1] / sigma[0])
    assert 0.02 * true_rcond < factors.rcond <= true_rcond * (1 + 1e-9)
    P = factors.left[0] @ factors.basis[0].mT
    assert relative_error(P, true_pinv(A, rtol)) <= UNIT[torch.float32]


@shapes
@pytest.mark.parametrize("zeros", [0, 1, 3, BLOCK - 1])
@pytest.mark.parametrize("below", [0.5, 1e-2])
def test_it_proves_the_rank_and_gives_the_inverse(shape, zeros, below) -> None:
    A = with_zeros(*shape, zeros, below=below)
    factors, verdict = found(A, RTOL)
    assert verdict == Verdict.CERTIFIED
    assert factors.rank == min(shape) - zeros
    assert_right(A, factors, RTOL)


def test_square_matrices_of_random_numbers() -> None:
    """Their smallest singular values lie anywhere near the tolerance; nearly all are decided."""
    ranks, undecided = set(), 0
    for seed in range(20):
        A = random(150, 150, seed=seed).float()
        for rtol in (3e-4, 1e-3, 3e-3):
            factors, verdict = found(A, rtol)
            if verdict == Verdict.CERTIFIED:
                assert_right(A, factors, rtol)
                ranks.add(int(factors.rank))
            undecided += verdict != Verdict.CERTIFIED
    assert ranks >= {148, 149, 150}
    assert undecided <= 6


@pytest.mark.parametrize("beside", [0.9, 0.9999, 1 - 1e-6, 1 + 1e-6, 1.02, 1.1])
def test_next_to_the_tolerance_nothing_is_guessed(beside) -> None:
    """What is below it is decided up to the rounding errors, as a Krylov space finds σ_1 exactly
    if it stands out; what is above it, from 3 percent on."""
    sigma = torch.cat([10 ** -torch.linspace(0, 2, 99, dtype=F64), torch.tensor([RTOL * beside])])
    A = with_singular_values(120, 100, sigma).float()
    factors, verdict = found(A, RTOL)
    if verdict == Verdict.CERTIFIED:
        assert_right(A, factors, RTOL)
    else:
        assert verdict == Verdict.OPEN
        assert factors.rank == factors.rcond == 0
        assert not factors.done
    assert (verdict == Verdict.CERTIFIED) == (beside in (0.9, 0.9999, 1.1))


def test_singular_vectors_that_are_not_separate_are_not_taken() -> None:
    """The rank is clear, but float64 does not tell the vectors apart to float32's digits."""
    sigma = torch.cat([torch.ones(98), torch.tensor([2e-5, 0.9e-5])]).to(F64)
    A = with_singular_values(100, 100, sigma).float()
    _, verdict = found(A, 1e-5)
    assert verdict == Verdict.OPEN
    sigma[-2:] *= 100
    A = with_singular_values(100, 100, sigma).float()
    factors, _ = found(A, 1e-3)
    assert_right(A, factors, 1e-3)


def test_what_is_above_the_diagonal_of_the_gram_matrix_does_not_count() -> None:
    """In a matrix of one panel that is all of it; twice the norm would move the tolerance."""
    sigma = torch.cat([torch.ones(1), torch.full((14,), 1e-2), torch.tensor([1.2 * RTOL])]).to(F64)
    A = with_singular_values(30, 16, sigma).float()
    factors, verdict = found(A, RTOL)
    assert verdict == Verdict.CERTIFIED
    assert_right(A, factors, RTOL)


def test_the_condition_is_bounded_well_enough() -> None:
    """Or another driver would run because the squares seem to have lost the digits."""
    sigma = 10.0 ** -torch.linspace(0, 4.2, 150, dtype=F64)
    factors, _ = found(with_singular_values(150, 150, sigma).float(), 1e-5)
    assert factors.rank == 150
    assert SQUARE_LIMIT < factors.rcond <= sigma[-1] * 1.001


def test_an_absolute_tolerance() -> None:
    A = 1000 * with_zeros(150, 150, 2)
    factors, verdict = found(A, 0.0, atol=1000 * RTOL)
    assert verdict == Verdict.CERTIFIED
    assert factors.rank == 148


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_of_float32(scale) -> None:
    A = with_zeros(150, 150, 2) * scale
    factors, verdict = found(A, RTOL)
    assert verdict == Verdict.CERTIFIED
    assert_right(A, factors, RTOL)


def test_a_tolerance_within_the_rounding_errors() -> None:
    sigma = torch.cat([torch.ones(99), torch.tensor([1e-7])]).to(F64)
    _, verdict = found(with_singular_values(100, 100, sigma).float(), 1e-8)
    assert verdict == Verdict.BLURRED


def test_columns_that_are_sums_of_others() -> None:
    """G is singular: its factorization fails at the last columns."""
    A = conditioned(200, 150, 100.0).float()
    A[:, 140:] = A[:, 20:30] - A[:, 40:50]
    for last in (141, 147):
        left_out = A[:, :last]
        factors, verdict = found(left_out.contiguous(), RTOL)
        assert verdict == Verdict.CERTIFIED
        assert factors.rank == 140
        assert_right(left_out, factors, RTOL)
    assert found(A, RTOL) is None
    assert found(A[:, :141].contiguous(), 0.0) is None


def test_what_is_left_to_the_row_space() -> None:
    A = random(100, 100).float()
    for value in (math.nan, math.inf):
        for at in (3, 99):
            broken = A.clone()
            broken[7, at] = value
            assert found(broken, RTOL) is None
    assert found(torch.zeros(100, 100), RTOL) is None
    assert found(with_zeros(100, 100, BLOCK), RTOL) is None
    assert found(conditioned(100, 100, 10.0, rank=50).float(), RTOL) is None
    assert found(conditioned(100, 100, 10.0, rank=5).float(), RTOL) is None


@pytest.fixture
def without_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other driver may run."""

    def unexpected(*_):
        raise AssertionError("another driver")

    for name in ("row_space", "cholesky", "cholesky_twice", "eigh", "qr_svd", "jacobi"):
        monkeypatch.setattr(drivers, name, unexpected)


@pytest.mark.usefixtures("without_others")
def test_auto_takes_it_for_large_matrices() -> None:
    k = costs.NEARLY_FULL_COLUMNS
    A = torch.stack([with_zeros(k, k + 9, zeros) for zeros in (1, 0)])
    for X in (A, A.mT):
        P, info = pinv(X, rtol=RTOL, return_info=True)
        B = random(2, X.shape[-2], 3, seed=4).float()
        solution = lstsq(X, B, rtol=RTOL)
        assert info.rank.tolist() == [k - 1, k]
        assert info.code.tolist() == [0, 0]
        for i in range(2):
            truth = true_pinv(X[i], RTOL)
            assert relative_error(P[i], truth) <= 2 * UNIT[torch.float32]
            wanted = truth @ B[i].double()
            size = float(truth.norm() * B[i].norm() / wanted.norm())
            assert relative_error(solution[i], wanted) <= size * 2 * UNIT[torch.float32]


@pytest.fixture
def for_small_ones(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Taken for all but tiny matrices; fails if it was not."""
    results = []

    def noted(*arguments):
        results.append(nearly_full(*arguments))
        return results[-1]

    monkeypatch.setattr(costs, "NEARLY_FULL_COLUMNS", 33)
    monkeypatch.setattr(costs, "takes_small", lambda _: False)
    monkeypatch.setattr(drivers, "nearly_full", noted)
    yield
    assert any(result is not None and result[0].done for result in results)


@pytest.mark.usefixtures("for_small_ones")
def test_each_matrix_of_a_batch_goes_its_own_way() -> None:
    """By this; by the row space; by eigenvalues; of too large a condition; not finite."""
    A = torch.stack(
        [
            with_zeros(60, 50, 2),
            conditioned(60, 50, 10.0, rank=20).float(),
            with_zeros(60, 50, 1, below=0.999),
            conditioned(60, 50, 1e6).float(),
            torch.full((60, 50), math.nan),
        ]
    )
    rtol = torch.tensor([RTOL, RTOL, RTOL, 1e-8, RTOL], dtype=F64)
    for X in (A, A.mT):
        P, info = pinv(X, rtol=rtol, return_info=True)
        assert info.rank.tolist() == [48, 20, 49, 50, 0]
        assert info.code.tolist() == [0, 0, 0, 0, 1]
        for i in range(4):
            assert relative_error(P[i], true_pinv(X[i], float(rtol[i]))) <= 1e-6
        assert P[4].isnan().all()


@pytest.mark.usefixtures("for_small_ones")
@pytest.mark.parametrize("zeros", [0, 2])
def test_derivatives(zeros) -> None:
    """Those of the float64 drivers."""
    A = with_zeros(50, 45, zeros, above=1000.0)
    B, direction = random(50, 2, seed=1).float(), random(45, 50, seed=2).float()
    results = []
    for dtype in (torch.float32, F64):
        X, right = (t.to(dtype).requires_grad_() for t in (A, B))
        loss = (pinv(X, rtol=RTOL) * direction.to(dtype)).sum()
        loss = loss + lstsq(X, right, rtol=RTOL).square().sum()
        results.append(torch.autograd.grad(loss, (X, right)))
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.usefixtures("for_small_ones")
def test_opcheck() -> None:
    for A in (with_zeros(50, 45, 2), with_zeros(45, 50, 0), with_zeros(50, 50, 1)):
        atol, rtol = torch.zeros((), dtype=F64), torch.tensor(RTOL, dtype=F64)
        torch.library.opcheck(pinv_factors, (A, atol, rtol, False, "auto", True))
