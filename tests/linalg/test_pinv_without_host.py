"""synchronize=False: nothing is read on the host on the way, as a CUDA graph demands."""

from __future__ import annotations

import pytest
import torch

from fusedstep import lstsq, pinv
from fusedstep.linalg.drivers import Method, factorise
from fusedstep.linalg.numerics import Tolerance
from tests.support.matrices import conditioned
from tests.support.reads import NoReads
from tests.support.tensors import name_of


def batch(dtype: torch.dtype) -> torch.Tensor:
    """Full and deficient ranks, zero and a matrix with NaN; beyond the tiny ones, whose kernel
    reads nothing either way."""
    parts = [conditioned(40, 36, 10.0, rank) for rank in (36, 3, 1)]
    nan = torch.full_like(parts[0], float("nan"))
    return torch.stack([*parts, torch.zeros_like(nan), nan]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("driver", ["cholesky", "jacobi"])
def test_nothing_is_read(dtype, driver) -> None:
    A = batch(dtype)
    tolerance = Tolerance(torch.zeros(5).double(), torch.full((5,), 1e-6).double())
    for matrices in (A, A.mT):
        with NoReads():
            found = factorise(matrices, tolerance, Method(False, driver, synchronize=False))
        assert found.code.tolist()[-1] == 1
    with NoReads(), pytest.raises(AssertionError, match="reads a result on the host"):
        factorise(A, tolerance, Method(False, "auto", synchronize=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_the_result_is_the_same(dtype) -> None:
    A, B = batch(dtype), torch.ones(5, 40, 2, dtype=dtype)
    (expected, info), (actual, masked) = (
        pinv(A, return_info=True, synchronize=choice) for choice in (True, False)
    )
    torch.testing.assert_close(actual, expected, equal_nan=True)
    assert info.rank.tolist() == masked.rank.tolist() == [36, 3, 1, 0, 0]
    assert info.code.tolist() == masked.code.tolist() == [0, 0, 0, 0, 1]
    torch.testing.assert_close(
        lstsq(A, B, synchronize=False), lstsq(A, B), equal_nan=True, rtol=1e-5, atol=1e-6
    )
