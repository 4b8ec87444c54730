"""The drivers of pinv: which one each matrix of a batch gets, what they read on the host, and that
a matrix that fails does so alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fusedstep import lstsq, pinv
from fusedstep.linalg import costs, decompositions, drivers
from fusedstep.linalg.drivers import Method, factorise
from fusedstep.linalg.numerics import Tolerance
from tests.support.matrices import conditioned, relative_error, true_pinv
from tests.support.reads import NoReads
from tests.support.tensors import assert_same_bits, name_of

SHAPES = ((70, 40), (40, 70))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many matrices each driver was given."""
    counts: dict[str, int] = {}

    def counted(name: str):
        driver = getattr(drivers, name)

        def run(X: Tensor, *rest):
            counts[name] = counts.get(name, 0) + len(X)
            return driver(X, *rest)

        return run

    for name in ("row_space", "cholesky", "cholesky_twice", "eigh", "qr_svd"):
        monkeypatch.setattr(drivers, name, counted(name))
    return counts


def matrices(m: int, n: int) -> tuple[Tensor, Tensor, list[int]]:
    """float32 matrices, one for each way through the driver; their rtol and their ranks."""
    k = min(m, n)
    cases = [
        (conditioned(m, n, 10.0), 1e-6, k),  # certified
        (conditioned(m, n, 1e5), 1e-8, k),  # certified, of too large a condition to be squared
        (conditioned(m, n, 10.0, rank=30), 1e-5, 30),  # certified, with a basis of the row space
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
    assert calls == {"row_space": 9, "cholesky_twice": 1, "eigh": 1, "qr_svd": 2}
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


def batch(dtype: torch.dtype) -> torch.Tensor:
    """Full and deficient ranks, zero and a matrix with NaN; beyond the tiny ones, whose kernel
    reads nothing either way."""
    parts = [conditioned(40, 36, 10.0, rank) for rank in (36, 3, 1)]
    nan = torch.full_like(parts[0], float("nan"))
    return torch.stack([*parts, torch.zeros_like(nan), nan]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("driver", ["cholesky", "jacobi"])
def test_without_the_host_nothing_is_read(dtype, driver) -> None:
    A = batch(dtype)
    tolerance = Tolerance(torch.zeros(5).double(), torch.full((5,), 1e-6).double())
    for matrices in (A, A.mT):
        with NoReads():
            found = factorise(matrices, tolerance, Method(False, driver, synchronize=False))
        assert found.code.tolist()[-1] == 1
    with NoReads(), pytest.raises(AssertionError, match="reads a result on the host"):
        factorise(A, tolerance, Method(False, "auto", synchronize=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_without_the_host_the_result_is_the_same(dtype) -> None:
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


BAD_VALUES = [math.nan, math.inf, -math.inf]
BY = [{"driver": d} for d in ("auto", "cholesky", "eigh", "qr_svd", "jacobi")]


@pytest.mark.parametrize("value", BAD_VALUES)
@pytest.mark.parametrize("options", [*BY, {"synchronize": False}, {"hermitian": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_that_is_not_finite_becomes_nan_alone(value, options, dtype) -> None:
    batch = torch.eye(4, dtype=dtype) + 0.1 * torch.ones(5, 4, 4, dtype=dtype)
    expected = pinv(batch, **options)
    batch[1, 2, 0] = value
    batch[3, 3, 3] = value
    actual, info = pinv(batch, return_info=True, **options)
    assert actual[[1, 3]].isnan().all()
    torch.testing.assert_close(actual[[0, 2, 4]], expected[[0, 2, 4]])
    assert info.code.tolist() == [0, 1, 0, 1, 0]
    assert info.rank.tolist() == [4, 0, 4, 0, 4]
    assert info.rcond.isnan().tolist() == [False, True, False, True, False]
    if "hermitian" not in options:
        solved = lstsq(batch, torch.ones(5, 4, 2, dtype=dtype), **options)
        assert solved.isnan().flatten(1).all(1).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_a_matrix_that_does_not_converge_fails_alone(name, monkeypatch) -> None:
    """torch raises for the whole batch where LAPACK gives up on one matrix."""
    honest = getattr(torch.linalg, name)
    calls = []

    def gives_up(X, **options):
        calls.append(len(X))
        if (X[:, 0, 0].abs() > 1e3).any():
            raise torch.linalg.LinAlgError("failed to converge")
        return honest(X, **options)

    batch = torch.ones(7, 3, 2) + torch.arange(6).view(3, 2)
    batch[4] *= 1e3
    driver = "eigh" if name == "eigh" else "qr_svd"
    expected = pinv(batch, driver=driver)
    monkeypatch.setattr(decompositions.torch.linalg, name, gives_up)
    actual, info = pinv(batch, driver=driver, return_info=True)
    assert info.code.tolist() == [0, 0, 0, 0, 2, 0, 0]
    assert actual[4].isnan().all()
    rest = [0, 1, 2, 3, 5, 6]
    torch.testing.assert_close(actual[rest], expected[rest])
    assert calls[0] == 7
    assert len(calls) > 3


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel for small matrices, which comes first, takes none."""
    monkeypatch.setattr(costs, "takes_small", lambda _: False)


@pytest.fixture
def torchs(monkeypatch: pytest.MonkeyPatch, unproved: None) -> list[str]:
    """The names of torch's own functions as they are called."""
    names: list[str] = []

    def noted(name: str):
        function = getattr(torch.linalg, name)
        return lambda *given, **options: names.append(name) or function(*given, **options)

    for name in ("pinv", "lstsq"):
        monkeypatch.setattr(torch.linalg, name, noted(name))
    return names


LITTLE = ((64, 64), (60, 36), (36, 60), (2, 40, 36))


@pytest.mark.parametrize("shape", LITTLE, ids=str)
@pytest.mark.parametrize("rank", [36, 20, 1])
def test_little_work_is_done_by_torch(shape, rank, torchs) -> None:
    *batch, m, n = shape
    A = conditioned(m, n, 10.0, rank).expand(shape)
    B = torch.ones(*batch, m, 2).double()
    P, X = pinv(A), lstsq(A, B)
    assert torchs == ["pinv", "lstsq"]
    for p, x in zip(P.view(-1, n, m), X.view(-1, n, 2), strict=True):
        truth = true_pinv(A.reshape(-1, m, n)[0], 1e-12)
        assert relative_error(p, truth) < 1e-12
        assert relative_error(x, truth @ torch.ones(m, 2).double()) < 1e-12


def test_long_matrices_of_few_right_sides_too(torchs) -> None:
    A, B = conditioned(500, 90, 10.0), torch.ones(500, 4).double()
    X = lstsq(A, B)
    assert torchs == ["lstsq"]
    lstsq(A, torch.ones(500, 40).double())
    pinv(A)
    lstsq(A[:200], B[:200])
    assert torchs == ["lstsq"]
    assert relative_error(X, true_pinv(A, 1e-12) @ B) < 1e-12


@pytest.mark.parametrize(
    "options",
    [{"driver": "qr_svd"}, {"synchronize": False}, {"rtol": torch.tensor(1e-9)}],
    ids=str,
)
def test_torch_does_not_take_what_asks_for_more(options, torchs) -> None:
    A, B = conditioned(60, 40, 10.0), torch.ones(60, 2).double()
    wanted = lstsq(A, B)
    assert pinv(A).shape == (40, 60)
    assert torchs == ["lstsq", "pinv"]
    torchs.clear()
    pinv(A, **options)
    pinv(A, return_info=True)
    torch.testing.assert_close(lstsq(A, B, **options), wanted)
    torch.testing.assert_close(lstsq(A, B.clone().requires_grad_()), wanted)
    lstsq(A.float(), B.float())
    assert torchs == []


@pytest.mark.parametrize("rtol", [0.0, 1e-20, 1e-9, 0.3, 0.6, 1.0, 2.0])
def test_by_torch_a_tolerance_means_the_same(rtol, torchs) -> None:
    """gelsd itself takes eps for 0, and for 1 and more."""
    sigma = torch.tensor([1.0, 0.5, 0.1, 1e-8, *[1e-12] * 36]).double()
    A, B = torch.diag(sigma), torch.ones(40, 1).double()
    wanted = torch.where(sigma > rtol, 1 / sigma, 0.0)[:, None]
    torch.testing.assert_close(lstsq(A, B, rtol=rtol), wanted, rtol=1e-9, atol=0)
    assert torchs == (["lstsq"] if rtol in (1e-9, 0.3) else [])
    torch.testing.assert_close(pinv(A, rtol=rtol) @ B, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("value", BAD_VALUES)
def test_by_torch_what_is_not_finite_becomes_nan_alone(value, torchs) -> None:
    A = torch.stack([conditioned(38, 34, 10.0, rank) for rank in (34, 20, 7)])
    B = torch.ones(3, 38, 2).double()
    P, X = pinv(A), lstsq(A, B)
    A[1, 2, 3] = value
    for actual, before in ((pinv(A), P), (lstsq(A, B), X)):
        assert actual[1].isnan().all()
        torch.testing.assert_close(actual[[0, 2]], before[[0, 2]])
    B[0, 5, 1] = math.nan
    X[1], X[0, :, 1] = math.nan, math.nan
    torch.testing.assert_close(lstsq(A, B), X, equal_nan=True)
    assert torchs == ["pinv", "lstsq"]


def test_where_torch_gives_up_the_proofs_do_not(monkeypatch, unproved) -> None:
    def gives_up(*_, **__):
        raise torch.linalg.LinAlgError("failed to converge")

    A, B = conditioned(60, 40, 10.0, 20), torch.ones(60, 2).double()
    P, X = pinv(A), lstsq(A, B)
    for name in ("pinv", "lstsq"):
        monkeypatch.setattr(torch.linalg, name, gives_up)
    torch.testing.assert_close(pinv(A), P)
    torch.testing.assert_close(lstsq(A, B), X)
