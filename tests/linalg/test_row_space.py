"""The op row_space: its proofs against float64 SVDs, noise at every level, NaN, threads, refusals;
and that "auto" takes it."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fusedstep import lstsq, pinv
from fusedstep.linalg import costs, drivers
from fusedstep.linalg.numerics import Tolerance, Verdict, gram, row_space
from tests.support.matrices import (
    UNIT,
    conditioned,
    random,
    relative_error,
    true_pinv,
    with_singular_values,
)
from tests.support.tensors import assert_same_bits, name_of, threads

op = torch.ops.fusedstep.row_space
F64 = torch.float64
SHAPES = ((64, 64), (100, 100), (200, 50), (50, 200), (130, 70), (40, 33))
both = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def not_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by the kernel for small matrices: these two take them otherwise."""
    monkeypatch.setattr(costs, "takes_small", lambda _: False)
    monkeypatch.setattr(costs, "SVD_WORK", 0)
    monkeypatch.setattr(costs, "takes_gelsd", lambda *_: False)


def tolerance(count: int, rtol: float) -> Tolerance:
    return Tolerance(torch.zeros(count, dtype=F64), torch.full((count,), rtol, dtype=F64))


def tall(A: Tensor) -> Tensor:
    return A if A.shape[-2] >= A.shape[-1] else A.mT


@shapes
@pytest.mark.parametrize("threads_used", [1, 3])
def test_it_proves_the_rank_and_gives_the_inverse(shape, threads_used) -> None:
    k = min(shape)
    ranks = (0, 1, 7, k // 2, k - 1, k)
    X = torch.stack([conditioned(*shape, 10.0, r, seed=r) for r in ranks]).float()
    X = tall(X)
    with threads(threads_used):
        G = gram(X)
        W, verdict, rank, rcond = row_space(G, tolerance(len(ranks), 1e-5), X.shape[-2])
    assert verdict.tolist() == [Verdict.CERTIFIED] * len(ranks)
    assert rank.tolist() == list(ranks)
    for i, r in enumerate(ranks):
        assert (W[i, :, r:] == 0).all()
        P = W[i] @ (X[i].double() @ W[i]).mT
        sigma = torch.linalg.svdvals(X[i].double())
        if r > 0:
            assert relative_error(P, true_pinv(X[i], 1e-5)) < 1e-10
            assert 0 < rcond[i] <= sigma[r - 1] / sigma[0] * (1 + 1e-9)
            assert rcond[i] > 0.01 * sigma[r - 1] / sigma[0]
        else:
            assert rcond[i] == 0


def test_bits_do_not_depend_on_threads_or_neighbours() -> None:
    X = torch.stack([conditioned(300, 250, 10.0, r, seed=r) for r in (20, 180, 250)]).float()
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(row_space(gram(X), tolerance(3, 1e-5), 300))
            alone = row_space(gram(X[1:2]), tolerance(1, 1e-5), 300)
        for together, single in zip(results[-1], alone, strict=True):
            assert_same_bits(together[1], single[0])
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
def test_nothing_is_proved_next_to_the_tolerance(rtol) -> None:
    """A singular value within the bounds' slack of it, or one too near to those that are kept."""
    for beside in (0.7, 0.9, 1.1):
        sigma = torch.cat([torch.ones(39), torch.tensor([rtol * beside])]).to(F64)
        X = with_singular_values(60, 40, sigma)[None].float()
        _, verdict, rank, _ = row_space(gram(X), tolerance(1, rtol), 60)
        assert verdict != Verdict.CERTIFIED or rank == (40 if beside > 1 else 39)
    sigma = torch.cat([torch.ones(20), torch.full((20,), 1e-3)]).to(F64)
    X = with_singular_values(60, 40, sigma)[None].float()
    _, verdict, rank, rcond = row_space(gram(X), tolerance(1, 0.1), 60)
    assert verdict == Verdict.OPEN
    assert rank == rcond == 0


def test_what_the_gram_matrix_cannot_tell() -> None:
    X = conditioned(60, 40, 10.0, rank=20)[None].float()
    _, verdict, _, _ = row_space(gram(X), tolerance(1, 1e-9), 60)
    assert verdict == Verdict.BLURRED
    _, verdict, rank, _ = row_space(gram(X), tolerance(1, 1e-9), 60, guess=True)
    assert verdict == Verdict.CERTIFIED
    assert rank == 20


def test_what_is_not_finite_is_reported_and_affects_no_other() -> None:
    X = torch.stack([conditioned(60, 40, 10.0, 9, seed=s) for s in range(4)]).float()
    wanted = row_space(gram(X), tolerance(4, 1e-5), 60)
    X[1, 3, 5], X[2, 0, 0] = math.nan, math.inf
    W, verdict, rank, rcond = row_space(gram(X), tolerance(4, 1e-5), 60)
    assert verdict.tolist() == [0, Verdict.NOT_FINITE, Verdict.NOT_FINITE, 0]
    assert rank.tolist() == [9, 0, 0, 9]
    assert (W[1:3] == 0).all()
    for found, before in zip((W, rank, rcond), (wanted[0], *wanted[2:]), strict=True):
        assert_same_bits(found[[0, 3]], before[[0, 3]])


def noisy(shape: tuple[int, int], rank: int, noise: float, dtype: torch.dtype) -> Tensor:
    """Of condition 10, and noise of that size relative to the largest singular value."""
    E = random(*shape, seed=9)
    E *= noise / torch.linalg.matrix_norm(E, 2)
    return (conditioned(*shape, 10.0, rank, seed=rank) + E).to(dtype)


@both
@shapes
@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-7, 1e-5])
@pytest.mark.parametrize("rtol", [None, 1e-3])
def test_noise_of_every_level(shape, dtype, noise, rtol) -> None:
    """Below the tolerance or above it: the rank and the accuracy are those of the SVD."""
    for rank in (1, min(shape) // 10, min(shape) // 2):
        A = noisy(shape, rank, noise, dtype)
        used = torch.finfo(dtype).eps * max(shape) if rtol is None else rtol
        sigma = torch.linalg.svdvals(A.double())
        kept = int((sigma > used * sigma[0]).sum())
        if (sigma / sigma[0] / used).log().abs().min() < 0.3:
            continue  # a singular value lies on the threshold
        P, info = pinv(A, rtol=rtol, return_info=True)
        assert info.rank == kept
        condition = float(sigma[0] / sigma[kept - 1])
        truth = true_pinv(A, used)
        limit = 2 * UNIT[dtype] if dtype == torch.float32 else 100 * condition * UNIT[F64]
        # The truth itself is off by what float64 leaves of the condition.
        assert relative_error(P, truth) <= max(limit, 100 * condition * UNIT[F64])
        B = random(shape[0], 3, seed=4).to(dtype)
        X = lstsq(A, B, rtol=rtol)
        wanted = truth @ B.double()
        size = float(truth.norm() * B.double().norm() / wanted.norm())
        assert relative_error(X, wanted) <= size * max(limit, 100 * condition * UNIT[F64])


@both
@pytest.mark.parametrize("shape", [(60, 40), (64, 64), (40, 90)], ids=str)
@pytest.mark.parametrize("decades", [4.0, 8.0, 14.0])
def test_a_slow_decay_through_the_tolerance(shape, dtype, decades) -> None:
    k = min(shape)
    sigma = 10.0 ** -torch.linspace(0, decades, k, dtype=F64)
    A = with_singular_values(*shape, sigma).to(dtype)
    rtol = float((sigma[k // 2 - 1] * sigma[k // 2]).sqrt())
    if dtype == torch.float32 and rtol < 1e-6:
        pytest.skip("float32 has no such singular values")
    P, info = pinv(A, rtol=rtol, return_info=True)
    assert info.rank == k // 2
    condition = 1 / float(sigma[k // 2 - 1])
    # The gap to the next singular value counts as well as the condition.
    gap = float(sigma[k // 2 - 1] / (sigma[k // 2 - 1] - sigma[k // 2]))
    limit = 2 * UNIT[dtype] + 100 * condition * gap * UNIT[F64]
    assert relative_error(P, true_pinv(A, rtol)) <= limit


@pytest.mark.parametrize("shape", [(36, 33), (33, 40)], ids=str)
@pytest.mark.parametrize("noise", [1e-13, 1e-9])
def test_float64_against_forty_digits(shape, noise) -> None:
    """The noise is real, and its share of the answer is not to be seen."""
    A = noisy(shape, 5, noise, F64)
    with mpmath.workdps(40):
        U, sigma, Vh = mpmath.svd_r(mpmath.matrix(A.tolist()))
        inverse = mpmath.diag([1 / sigma[i] for i in range(5)])
        P = (Vh[:5, :].T * inverse) * U[:, :5].T
        truth = np.array([[np.longdouble(str(x)) for x in row] for row in P.tolist()])
    actual = pinv(A, rtol=1e-6)
    theirs = relative_error(torch.linalg.pinv(A, rtol=1e-6), truth)
    assert relative_error(actual, truth) <= max(4 * theirs, 20 * 10 * UNIT[F64])


@both
@pytest.mark.parametrize("ranks", [(20, 7), (40, 40), (40, 7), (0, 7), (0, 40)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_auto_needs_no_other_driver(ranks, dtype, scale, monkeypatch) -> None:
    def unexpected(*_):
        raise AssertionError("another driver")

    for name in ("cholesky", "cholesky_twice", "eigh", "qr_svd", "jacobi"):
        monkeypatch.setattr(drivers, name, unexpected)
    A = torch.stack([conditioned(60, 40, 10.0, r, seed=r) for r in ranks]) * scale
    for X in (A, A.mT):
        P, info = pinv(X.to(dtype), return_info=True)
        assert info.rank.tolist() == list(ranks)
        assert info.code.tolist() == [0, 0]
        assert lstsq(X.to(dtype), torch.ones(2, X.shape[-2], 2, dtype=dtype)).isfinite().all()
        for p, x in zip(P, X, strict=True):
            wanted = true_pinv(x.to(dtype), 1e-5)
            torch.testing.assert_close(p, wanted.to(dtype))


def given() -> tuple[Tensor, Tensor, Tensor, int, bool]:
    X = torch.stack([conditioned(9, 4, 10.0, r) for r in (4, 2)]).float()
    return gram(X), *tolerance(2, 1e-5), 9, False


def test_opcheck() -> None:
    opcheck(op.default, given())


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t[0], "gram must have 3 dimensions, got float64 with shape"),
        (0, lambda t: t.float(), "gram must be a dense float64 tensor, got float32"),
        (0, lambda t: t.mT, "gram must be contiguous, got float64 with shape"),
        (0, lambda t: t[:, :3].clone(), "gram must be square, got float64 with shape"),
        (1, lambda t: t[:1], r"atol must have the shape \[2\], got float64 with shape \[1\]"),
        (2, lambda t: t[:1].expand(2), "rtol must be contiguous, got float64 with shape"),
        (3, lambda n: 3, "count must be at least the width of gram, got 3"),
    ],
)
def test_refused(position: int, change, message: str) -> None:
    arguments = list(given())
    arguments[position] = change(arguments[position])
    with pytest.raises(RuntimeError, match=f"row_space: {message}"):
        op(*arguments)
