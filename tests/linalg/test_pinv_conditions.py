"""All that makes a pseudo-inverse one: Penrose's four conditions, both identities, the gradient.

An error in one of them says nothing of the others: P may be as near to A⁺ as can be asked while P A
misses I by the square of the condition number. The limits are the errors of torch's pinv, which is
by an SVD.
"""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from fusedstep import lstsq, pinv
from tests.support.matrices import UNIT, conditioned, random, refined_pinv, relative_error
from tests.support.matrices import with_singular_values as with_sigma
from tests.support.tensors import name_of

F64 = torch.float64
TINY = ((8, 8), (32, 32), (21, 9), (9, 21))
LARGER = ((40, 40), (34, 60))
DRIVERS = ({}, {"driver": "jacobi"}, {"driver": "qr_svd"}, {"synchronize": False})
FULL_RANK_DRIVERS = (*DRIVERS, {"driver": "cholesky"})
both = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
shapes = pytest.mark.parametrize("shape", [*TINY, *LARGER], ids=str)
conditions = pytest.mark.parametrize("condition", [1e0, 1e3, 1e6, 1e9])


def full_rank(m: int, n: int, condition: float) -> list[Tensor]:
    """Even and uneven singular values, columns and rows nearly the same, or of any scale."""
    k, X = min(m, n), random(m, n, seed=1)
    half = torch.ones(k, dtype=F64)
    half[k // 2 :] /= condition
    columns, rows = X.clone(), X.clone()
    columns[:, -1] = columns[:, 0] + columns[:, -1] / condition
    rows[-1] = rows[0] + rows[-1] / condition
    graded = X * condition ** -torch.linspace(0, 1, m, dtype=F64)[:, None]
    return [
        *(conditioned(m, n, condition, seed=seed) for seed in (1, 2)),
        *(with_sigma(m, n, half, seed=3), columns, rows, graded),
    ]


def errors(A: Tensor, P: Tensor, rank: int) -> list[float]:
    """Of A P A, P A P, A P and P A, relative to A, P and 1; and of what should be the identity."""
    a, p = (t.double().numpy().astype(np.longdouble) for t in (A, P))
    ap, pa = a @ p, p @ a
    found = [
        np.linalg.norm(t.astype(float))
        for t in ((ap @ a - a) / np.linalg.norm(A), (pa @ p - p) / np.linalg.norm(P))
    ]
    found += [np.linalg.norm((t - t.T).astype(float)) for t in (ap, pa)]
    for t in (ap, pa):
        if len(t) == rank:
            found.append(np.linalg.norm((t - np.eye(rank)).astype(float)))
    return found


def assert_near_torchs(A: Tensor, rank: int, rtol: float, **options) -> None:
    P, info = pinv(A, rtol=rtol, return_info=True, **options)
    if options.get("driver") == "cholesky" and info.code:
        return  # it proves full rank up to a condition number of about 1e6
    assert info.rank == rank
    sigma = torch.linalg.svdvals(A.double())
    rounding = UNIT[A.dtype] * float(sigma[0] / sigma[rank - 1])
    theirs = errors(A, torch.linalg.pinv(A, rtol=rtol), rank)
    for ours, limit in zip(errors(A, P, rank), theirs, strict=True):
        assert ours <= 10 * max(limit, rounding)


@shapes
@conditions
@pytest.mark.parametrize("options", FULL_RANK_DRIVERS, ids=str)
def test_full_rank(shape, condition, options) -> None:
    for A in full_rank(*shape, condition):
        assert_near_torchs(A, min(shape), 1e-15, **options)


@shapes
@conditions
@pytest.mark.parametrize("options", DRIVERS, ids=str)
def test_deficient_rank(shape, condition, options) -> None:
    k = min(shape)
    for rank in (1, k // 2, k - 1):
        A = conditioned(*shape, condition, rank, seed=rank)
        assert_near_torchs(A, rank, 0.01 / condition, **options)


@shapes
@pytest.mark.parametrize("condition", [1e0, 1e2, 1e4])
@pytest.mark.parametrize("options", FULL_RANK_DRIVERS, ids=str)
def test_float32(shape, condition, options) -> None:
    for A in full_rank(*shape, condition):
        assert_near_torchs(A.float(), min(shape), 1e-8, **options)
    if condition < 1e4 and options in DRIVERS:
        rank = min(shape) // 2
        A = conditioned(*shape, condition, rank).float()
        assert_near_torchs(A, rank, 0.02 / condition, **options)


def hilbert(n: int) -> Tensor:
    i = torch.arange(n, dtype=F64)
    return 1 / (1 + i + i[:, None])


@pytest.mark.parametrize("driver", ["auto", "jacobi"])
@pytest.mark.parametrize("n", [3, 5, 8, 10])
def test_hilberts_matrix_gives_back_what_it_is_multiplied_by(n, driver) -> None:
    A = hilbert(n)
    x = torch.arange(1.0, n + 1, dtype=F64)[:, None]
    P, reference = pinv(A, rtol=0.0, driver=driver), torch.linalg.pinv(A, rtol=0.0)
    ours, theirs = (relative_error(p @ (A @ x), x) for p in (P, reference))
    rounding = UNIT[F64] * float(torch.linalg.cond(A))
    assert ours <= 10 * max(theirs, rounding)
    assert_near_torchs(A, n, 1e-16, driver=driver)


@pytest.mark.parametrize("points", [20, 32, 100])
def test_a_polynomial_of_degree_nine(points) -> None:
    """Fitted to its own values, by P A x and by least squares."""
    t = torch.linspace(0, 1, points, dtype=F64)[:, None]
    A, x = t ** torch.arange(10), random(10, 1)
    b = A @ x
    truth = refined_pinv(A) @ b.numpy().astype(np.longdouble)
    theirs = relative_error(torch.linalg.lstsq(A, b, driver="gelsd").solution, truth)
    limit = 10 * max(theirs, UNIT[F64] * float(torch.linalg.cond(A)))
    for options in DRIVERS:
        assert relative_error(lstsq(A, b, **options), truth) <= limit
        assert relative_error(pinv(A, **options) @ b, truth) <= limit


@both
@pytest.mark.parametrize("shape", [(9, 9), (30, 8), (8, 30), (60, 34)], ids=str)
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5, 1e8])
def test_least_squares(shape, dtype, condition) -> None:
    """Where an X fits: else the square of the condition number counts."""
    if dtype == torch.float32 and condition > 1e4:
        pytest.skip("more than float32 can carry")
    m, n = shape
    for A in full_rank(m, n, condition):
        A = A.to(dtype)
        X = random(n, 3, seed=6) if m >= n else A.double().mT @ random(m, 3, seed=6)
        B = (A.double() @ X).to(dtype)
        truth = refined_pinv(A.double()) @ B.double().numpy().astype(np.longdouble)
        theirs = torch.linalg.lstsq(A, B, rcond=1e-15, driver="gelsd").solution
        rounding = UNIT[dtype] * float(torch.linalg.cond(A.double()))
        limit = 10 * max(relative_error(theirs, truth), rounding)
        for options in DRIVERS:
            assert relative_error(lstsq(A, B, rtol=1e-15, **options), truth) <= limit


def gradient(A: Tensor, weight: Tensor, solve, **options) -> Tensor:
    A = A.clone().requires_grad_()
    return torch.autograd.grad((solve(A, **options) * weight).sum(), A)[0]


def golub_pereyra(a, p, g):
    """The gradient of sum(p * g) as Golub and Pereyra have it, in the precision of a, p and g."""
    pt, gt = p.T, g.T
    return -pt @ g @ pt + (gt - a @ (p @ gt)) @ (p @ pt) + pt @ p @ (gt - (gt @ p) @ a)


def exact_pinv(A: Tensor) -> np.ndarray:
    """Of full rank, (AᵀA)⁻¹ Aᵀ of 50 digits: in extended precision P A would miss I by cond²."""
    if A.shape[0] < A.shape[1]:
        return exact_pinv(A.mT).T
    with mpmath.workdps(50):
        a = mpmath.matrix(A.tolist())
        return extended((a.T * a) ** -1 * a.T)


def extended(P: mpmath.matrix) -> np.ndarray:
    return np.array([[np.longdouble(str(x)) for x in row] for row in P.tolist()])


@pytest.mark.parametrize("shape", [(8, 8), (21, 9), (9, 21), (24, 24), (36, 33)], ids=str)
@conditions
def test_the_gradient(shape, condition) -> None:
    weight = random(*shape[::-1], seed=7)
    for A in full_rank(*shape, condition)[1:4]:
        truth = golub_pereyra(A.numpy(), exact_pinv(A), weight.numpy())
        theirs = gradient(A, weight, torch.linalg.pinv, rtol=1e-15)
        rounding = UNIT[F64] * float(torch.linalg.cond(A))
        limit = 10 * max(relative_error(theirs, truth), rounding)
        for driver in ("auto", "jacobi"):
            ours = gradient(A, weight, pinv, rtol=1e-15, driver=driver)
            assert relative_error(ours, truth) <= limit


def pinv_of_rank(A: Tensor, rank: int) -> np.ndarray:
    """By an SVD of 40 digits, of which `rank` singular values count."""
    with mpmath.workdps(40):
        U, sigma, Vh = mpmath.svd_r(mpmath.matrix(A.tolist()))
        inverse = mpmath.diag([1 / sigma[i] for i in range(rank)])
        return extended((Vh[:rank, :].T * inverse) * U[:, :rank].T)


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (5, 9)], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("driver", ["auto", "jacobi"])
@conditions
def test_the_inverse_and_its_gradient_at_deficient_rank(shape, rank, driver, condition) -> None:
    A = conditioned(*shape, condition, rank, seed=rank)
    weight, rtol = random(*shape[::-1], seed=7), 0.01 / condition
    truth = pinv_of_rank(A, rank)
    slope = golub_pereyra(A.numpy(), truth, weight.numpy())
    for exact, compute in (
        (truth, lambda solve, **options: solve(A, rtol=rtol, **options)),
        (slope, lambda solve, **options: gradient(A, weight, solve, rtol=rtol, **options)),
    ):
        ours = relative_error(compute(pinv, driver=driver), exact)
        theirs = relative_error(compute(torch.linalg.pinv), exact)
        assert ours <= 10 * max(theirs, UNIT[F64] * (condition if rank > 1 else 1))
