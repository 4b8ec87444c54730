"""synchronize=False: nothing is read on the host on the way, as a CUDA graph demands."""

from __future__ import annotations

import pytest
import torch
from helpers import name_of
from matrices import conditioned
from torch.utils._python_dispatch import TorchDispatchMode

from fusedstep import lstsq, pinv
from fusedstep.linalg.factors import Choice, factorise
from fusedstep.linalg.numerics import Tolerance

# What waits for the device: a value, a shape that depends on values, a status that is looked at.
READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique_dim"}
READS |= {"masked_select", "_linalg_eigh", "_linalg_svd", "linalg_cholesky", "linalg_inv"}


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(t.dtype == torch.bool for t in args[1] if t is not None)
        reads = by_mask or name in READS
        assert not reads, f"{name} reads a result on the host"
        return func(*args, **(kwargs or {}))


def batch(dtype: torch.dtype) -> torch.Tensor:
    """Full and deficient ranks, zero and a matrix with NaN."""
    parts = [conditioned(9, 5, 10.0, rank) for rank in (5, 3, 1)]
    nan = torch.full_like(parts[0], float("nan"))
    return torch.stack([*parts, torch.zeros_like(nan), nan]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("driver", ["auto", "cholesky", "jacobi"])
def test_nothing_is_read(dtype, driver) -> None:
    A = batch(dtype)
    tolerance = Tolerance(torch.zeros(5).double(), torch.full((5,), 1e-6).double())
    for matrices in (A, A.mT):
        with NoReads():
            found = factorise(matrices, tolerance, Choice(False, driver, synchronize=False))
        assert found.code.tolist()[-1] == 1
    with NoReads(), pytest.raises(AssertionError, match="reads a result on the host"):
        factorise(A, tolerance, Choice(False, driver, synchronize=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_the_result_is_the_same(dtype) -> None:
    A, B = batch(dtype), torch.ones(5, 9, 2, dtype=dtype)
    (expected, info), (actual, masked) = (
        pinv(A, return_info=True, synchronize=choice) for choice in (True, False)
    )
    torch.testing.assert_close(actual, expected, equal_nan=True)
    assert info.rank.tolist() == masked.rank.tolist() == [5, 3, 1, 0, 0]
    assert info.code.tolist() == masked.code.tolist() == [0, 0, 0, 0, 1]
    torch.testing.assert_close(
        lstsq(A, B, synchronize=False), lstsq(A, B), equal_nan=True, rtol=1e-5, atol=1e-6
    )
