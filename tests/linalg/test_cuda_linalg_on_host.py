"""pinv and lstsq on the host, as on a GPU: every driver over csrc/cuda's decompositions and the
stand-ins for cuBLAS and cuSOLVER, against the CPU's results."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedstep import lstsq, pinv
from fusedstep.linalg import decompositions
from tests.support.matrices import conditioned, positive, random, refined_pinv, relative_error
from tests.support.reads import NoReads
from tests.support.tensors import name_of

pytestmark = pytest.mark.slow

F64 = torch.float64


@pytest.mark.parametrize("k", [1, 5, 40])
def test_an_svd_by_way_of_eigenvalues_is_an_svd(on_simt: Any, k: int) -> None:
    R = torch.stack([random(k, k), conditioned(k, k, 1e8), 1e3 * random(k, k, seed=1)])
    U, sigma, Vh, done = decompositions.svd_by_eigh(R)
    assert done.all()
    truth = torch.linalg.svdvals(R)
    assert ((sigma - truth).abs() <= 1e-14 * k * truth[:, :1]).all()
    torch.testing.assert_close((U * sigma[:, None]) @ Vh, R, rtol=0, atol=1e-10)
    for basis in (U, Vh.mT):
        unit = torch.eye(k, dtype=F64).expand(2, k, k)
        torch.testing.assert_close((basis.mT @ basis)[::2], unit, rtol=0, atol=1e-9)


SHAPES = [(1, 1), (9, 5), (5, 9), (40, 32), (33, 33), (41, 60)]
DRIVERS = ["auto", "cholesky", "eigh", "qr_svd", "jacobi"]
both = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)


def matrices(shape: tuple[int, int], dtype: torch.dtype, deficient: bool = True) -> Tensor:
    """Of full rank, and if wanted of lower ranks and zero."""
    ranks = [None, None, *([1, max(1, min(shape) - 2), 0] if deficient else [])]
    parts = [conditioned(*shape, 20.0, rank, seed) for seed, rank in enumerate(ranks)]
    return torch.stack(parts).to(dtype)


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("synchronize", [True, False])
def test_every_driver_agrees_with_the_cpu(
    on_simt: Any, dtype: torch.dtype, shape: tuple[int, int], driver: str, synchronize: bool
) -> None:
    A = matrices(shape, dtype, deficient=driver != "cholesky")
    options = {"driver": driver, "synchronize": synchronize}
    actual, info = pinv(A, return_info=True, **options)
    truth = torch.linalg.pinv(A.double(), rtol=torch.finfo(dtype).eps * max(shape))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(actual.double(), truth, rtol=tolerance, atol=tolerance)
    assert info.code.tolist() == [0] * len(A)
    assert info.rank.tolist() == torch.linalg.matrix_rank(A).tolist()
    B = random(len(A), shape[0], 2).to(dtype)
    solved = lstsq(A, B, **options).double()
    torch.testing.assert_close(solved, truth @ B.double(), rtol=10 * tolerance, atol=10 * tolerance)


@both
@pytest.mark.parametrize("k", [7, 40])
def test_hermitian_matrices_agree_with_the_cpu(on_simt: Any, dtype: torch.dtype, k: int) -> None:
    A = random(3, k, k)
    A = (A + A.mT).to(dtype)
    for synchronize in (True, False):
        actual = pinv(A, hermitian=True, synchronize=synchronize).double()
        torch.testing.assert_close(actual, torch.linalg.inv(A.double()), rtol=1e-4, atol=1e-6)


@both
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("k", [5, 40])
def test_nothing_is_read_on_the_host(on_simt: Any, dtype: torch.dtype, driver: str, k: int) -> None:
    A, B = matrices((k + 3, k), dtype), random(5, k + 3, 2).to(dtype)
    A[1, 0, 0] = math.nan
    with NoReads():
        _, info = pinv(A, driver=driver, synchronize=False, return_info=True)
        lstsq(A, B, driver=driver, synchronize=False)
        if k == 5:
            pinv(A[:, :k], hermitian=True, synchronize=False)
    assert info.code[:2].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("driver", "k"), [("eigh", 6), ("eigh", 40), ("qr_svd", 6), ("qr_svd", 40), ("hermitian", 6)]
)
def test_a_matrix_that_does_not_converge_fails_alone(on_simt: Any, driver: str, k: int) -> None:
    options = {"hermitian": True} if driver == "hermitian" else {"driver": driver}
    A = positive(5, k)
    expected = pinv(A, **options)
    on_simt.gives_up(3)
    for synchronize in (True, False):
        actual, info = pinv(A, return_info=True, synchronize=synchronize, **options)
        assert info.code.tolist() == [0, 0, 0, 2, 0]
        assert info.rank.tolist() == [k, k, k, 0, k]
        assert actual[3].isnan().all()
        rest = [0, 1, 2, 4]
        assert torch.equal(actual[rest], expected[rest])


@both
def test_a_matrix_that_is_not_finite_fails_alone(on_simt: Any, dtype: torch.dtype) -> None:
    A = matrices((9, 5), dtype)
    expected = pinv(A)
    A[2, 1, 1], A[4, 0, 0] = math.nan, math.inf
    for driver in ("auto", "eigh", "qr_svd"):
        actual, info = pinv(A, driver=driver, return_info=True)
        assert info.code.tolist() == [0, 0, 1, 0, 1]
        torch.testing.assert_close(actual[[0, 1, 3]], expected[[0, 1, 3]])
        assert actual[[2, 4]].isnan().all()


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("k", [12, 40])
def test_float64_loses_no_more_than_the_condition(on_simt: Any, condition: float, k: int) -> None:
    A = conditioned(3 * k, k, condition)
    truth = refined_pinv(A)
    for driver in ("auto", "qr_svd"):
        error = relative_error(pinv(A, rtol=0.0, driver=driver), truth)
        assert error <= 100 * condition * 2.0**-53 * math.sqrt(k)
