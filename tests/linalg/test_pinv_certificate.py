"""The driver "auto" beyond tiny matrices: which factorisation each matrix of a batch gets, and that
none minds its neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fusedstep import pinv
from fusedstep.linalg import drivers
from tests.support.matrices import conditioned, relative_error, true_pinv
from tests.support.tensors import assert_same_bits

SHAPES = ((70, 40), (40, 70))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many matrices each driver was given."""
    counts: dict[str, int] = {}

    def counted(name: str):
        driver = getattr(drivers, name)

        def run(X: Tensor, tolerance):
            counts[name] = counts.get(name, 0) + len(X)
            return driver(X, tolerance)

        return run

    for name in ("cholesky", "cholesky_twice", "eigh", "qr_svd"):
        monkeypatch.setattr(drivers, name, counted(name))
    return counts


def matrices(m: int, n: int) -> tuple[Tensor, Tensor, list[int]]:
    """float32 matrices, one for each way through the driver; their rtol and their ranks."""
    k = min(m, n)
    cases = [
        (conditioned(m, n, 10.0), 1e-6, k),  # certified
        (conditioned(m, n, 1e5), 1e-8, k),  # certified, of too large a condition to be squared
        (conditioned(m, n, 10.0, rank=30), 1e-5, 30),  # by eigenvalues
        (
            conditioned(m, n, 1e6),
            1e-5,
            None,
        ),  # by eigenvalues, then what is kept has too large a one
        (conditioned(m, n, 1e9), 1e-8, None),  # a tolerance within the noise of eigenvalues
        (torch.zeros(m, n), 1e-6, 0),
        (torch.full((m, n), math.nan), 1e-6, 0),
        (torch.eye(m, n) * 3e38, 1e-6, k),  # squares that float32 does not have
        (torch.eye(m, n) * 1e-38, 1e-6, k),
    ]
    A = torch.stack([case[0].float() for case in cases])
    return A, torch.tensor([case[1] for case in cases]).double(), [case[2] for case in cases]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_matrix_by_the_driver_that_suits_it(shape, calls) -> None:
    A, rtol, ranks = matrices(*shape)
    P, info = pinv(A, rtol=rtol, return_info=True)
    assert calls == {"cholesky": 9, "cholesky_twice": 1, "eigh": 3, "qr_svd": 2}
    assert info.code.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0]
    for i, rank in enumerate(ranks):
        wanted = torch.linalg.matrix_rank(A[i].double(), rtol=rtol[i]) if rank is None else rank
        assert info.rank[i] == wanted, i
    assert P[6].isnan().all()
    assert (P[5] == 0).all()
    for i in (0, 1, 2, 3, 4, 7, 8):
        truth = true_pinv(A[i], float(rtol[i]))
        assert relative_error(P[i].double(), truth) < 1e-6, i


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("synchronize", [True, False])
def test_a_matrix_does_not_mind_its_neighbours(shape, synchronize) -> None:
    A, rtol, _ = matrices(*shape)
    together = pinv(A, rtol=rtol, synchronize=synchronize)
    for i in range(len(A)):
        alone = pinv(A[i : i + 1], rtol=rtol[i : i + 1], synchronize=synchronize)
        torch.testing.assert_close(together[i], alone[0], equal_nan=True, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cholesky_alone_fails_where_it_proves_nothing(shape, calls) -> None:
    A, rtol, _ = matrices(*shape)
    P, info = pinv(A, rtol=rtol, driver="cholesky", return_info=True)
    assert calls == {"cholesky": 9}
    assert info.code.tolist() == [0, 0, 2, 2, 2, 2, 1, 0, 0]
    assert P.isnan().flatten(1).all(1).tolist() == [code > 0 for code in info.code]
    assert_same_bits(info.rank[:2], torch.full((2,), 40))
