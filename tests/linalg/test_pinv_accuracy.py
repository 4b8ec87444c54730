"""How accurate pinv is, against float64 and extended precision, compared with torch.linalg.pinv."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusedstep import pinv
from tests.support.matrices import UNIT, conditioned, refined_pinv, relative_error, true_pinv
from tests.support.matrices import with_singular_values as with_sigma
from tests.support.tensors import name_of

F64 = torch.float64
SHAPES = ((200, 24), (24, 200), (40, 40))
CONDITIONS = (1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
conditions = pytest.mark.parametrize("condition", CONDITIONS)


def default_rtol(A: torch.Tensor) -> float:
    return torch.finfo(A.dtype).eps * max(A.shape[-2:])


@shapes
@conditions
@pytest.mark.parametrize("driver", ["auto", "eigh", "qr_svd", "jacobi"])
@pytest.mark.parametrize("rtol", [None, 1e-8])
def test_float32_is_never_worse_than_torch(shape, condition, driver, rtol) -> None:
    """The default tolerance truncates what is ill-conditioned; 1e-8 keeps everything."""
    A = conditioned(*shape, condition, seed=3).float()
    kept = default_rtol(A) if rtol is None else rtol
    sigma = torch.linalg.svdvals(A.double())
    if (sigma / sigma[0] / kept).log().abs().min() < 0.05:
        pytest.skip("a singular value lies on the threshold")
    truth = true_pinv(A, kept)
    ours = relative_error(pinv(A, rtol=rtol, driver=driver), truth)
    theirs = relative_error(torch.linalg.pinv(A, rtol=rtol), truth)
    kappa = float(sigma[0] / sigma[sigma > kept * sigma[0]][-1])
    assert ours <= 3e-7 + 10 * kappa**2 * UNIT[F64]
    if driver == "auto":  # leaves nothing of the squared condition
        assert ours <= 2 * UNIT[torch.float32]
    if not (driver == "eigh" and rtol == 1e-8):  # it asks for what eigh says it cannot
        assert ours <= max(theirs, UNIT[torch.float32])


@shapes
@conditions
@pytest.mark.parametrize("driver", ["auto", "qr_svd", "jacobi"])
def test_float64_loses_one_condition_number_not_its_square(shape, condition, driver) -> None:
    A = conditioned(*shape, condition * 10, seed=4)
    truth = refined_pinv(A)
    bound = 10 * condition * UNIT[F64] * min(shape) ** 0.5
    ours = relative_error(pinv(A, driver=driver), truth)
    theirs = relative_error(torch.linalg.pinv(A), truth)
    assert ours <= 100 * bound
    assert ours <= max(4 * theirs, bound)


@pytest.mark.parametrize("condition", [1e9, 1e11])
def test_float64_beyond_the_certificate(condition) -> None:
    """Where a Gram matrix has lost the smallest singular values, QR and an SVD have not."""
    A = conditioned(60, 12, condition)
    actual, info = pinv(A, return_info=True)
    assert info.rank == 12
    assert relative_error(actual, refined_pinv(A)) <= 100 * condition * UNIT[F64]


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
@pytest.mark.parametrize("rank", [1, 7, 23])
@pytest.mark.parametrize("condition", [1.0, 100.0])
def test_deficient_ranks(shape, dtype, rank, condition) -> None:
    A = conditioned(*shape, condition, rank, seed=5).to(dtype)
    truth = true_pinv(A, default_rtol(A))
    theirs = relative_error(torch.linalg.pinv(A), truth)
    for driver in ("auto", "jacobi", "qr_svd"):
        actual, info = pinv(A, driver=driver, return_info=True)
        assert info.rank == rank == torch.linalg.matrix_rank(A)
        error = relative_error(actual, truth)
        assert error <= max(theirs, 100 * condition * UNIT[dtype])
    if dtype == torch.float32:
        assert relative_error(pinv(A), truth) <= theirs


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
@pytest.mark.parametrize("beside", [0.5, 0.9, 1.1, 2.0])
def test_ranks_are_torchs_next_to_the_threshold(dtype, beside) -> None:
    """The band in which they may differ is max(m, n) units of rounding: 1 in 1000 or less."""
    m, n = 120, 10
    threshold = 1e-3
    sigma = torch.cat([torch.linspace(1, 0.1, n - 1), torch.tensor([threshold * beside])]).to(F64)
    A = torch.stack([with_sigma(m, n, sigma, seed) for seed in range(5)]).to(dtype)
    expected = torch.linalg.matrix_rank(A, rtol=threshold)
    for options in ({"driver": d} for d in ("auto", "eigh", "qr_svd", "jacobi")):
        _, info = pinv(A, rtol=threshold, return_info=True, **options)
        assert torch.equal(info.rank, expected), options
    _, info = pinv(A, rtol=threshold, return_info=True, synchronize=False)
    assert torch.equal(info.rank, expected)


def test_jacobi_keeps_small_singular_values_of_scaled_columns() -> None:
    """An SVD's error is relative to the largest singular value, that of rotations to each column
    (Demmel and Veselic 1992, "Jacobi's method is more accurate than QR")."""
    B = conditioned(12, 6, 10.0)
    scale = 2.0 ** torch.tensor([-60, 0, -100, -20, -80, -40], dtype=F64)
    truth = refined_pinv(B) / scale.numpy().astype(np.longdouble)[:, None]
    actual = pinv(B * scale, rtol=0.0, driver="jacobi")
    errors = [relative_error(actual[i], truth[i]) for i in range(6)]
    assert max(errors) < 1e-12
    by_svd = pinv(B * scale, rtol=0.0, driver="qr_svd")
    assert max(relative_error(by_svd[i], truth[i]) for i in range(6)) > 1e-6


def test_a_batch_may_mix_ranks_conditions_and_zeros() -> None:
    for dtype in (torch.float32, F64):
        parts = [
            conditioned(20, 6, c, r, seed)
            for seed, (c, r) in enumerate([(10.0, 6), (10.0, 3), (1e3, 6), (1.0, 1), (10.0, 6)])
        ]
        A = torch.stack([*parts, torch.zeros(20, 6, dtype=F64)]).to(dtype)
        together, info = pinv(A, return_info=True)
        assert info.rank.tolist() == [6, 3, 6, 1, 6, 0]
        alone = torch.stack([pinv(a) for a in A])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-7)
        masked = pinv(A, synchronize=False)
        torch.testing.assert_close(masked, together, rtol=1e-5, atol=1e-6)
