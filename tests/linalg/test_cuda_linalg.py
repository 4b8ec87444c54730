"""pinv and lstsq on a GPU: the CPU's results by every driver, no wait, CUDA graphs, any batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedstep import lstsq, pinv
from fusedstep.linalg import decompositions
from tests.support.matrices import conditioned, random, refined_pinv, relative_error
from tests.support.reads import waiting_is_an_error, warm_up
from tests.support.tensors import name_of

pytestmark = pytest.mark.gpu

F64 = torch.float64
DRIVERS = ["auto", "cholesky", "eigh", "qr_svd", "jacobi"]
SHAPES = [(1, 1), (9, 5), (5, 9), (32, 32), (33, 33), (200, 64), (64, 200)]
both = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
every_driver = pytest.mark.parametrize("driver", DRIVERS)


def matrices(shape: tuple[int, int], dtype: torch.dtype, driver: str = "auto") -> Tensor:
    """Of full rank and, but for the driver that cannot truncate, of lower ranks and zero."""
    ranks = [None, None, *([] if driver == "cholesky" else [1, max(1, min(shape) - 2), 0])]
    parts = [conditioned(*shape, 20.0, rank, seed) for seed, rank in enumerate(ranks)]
    return torch.stack(parts).to(dtype)


def assert_like_the_cpu(actual: Tensor, expected: Tensor, **options: Any) -> None:
    tolerance = 1e-5 if actual.dtype == torch.float32 else 1e-10
    options = {"rtol": tolerance, "atol": tolerance, "equal_nan": True} | options
    torch.testing.assert_close(actual.cpu(), expected, **options)


@contextmanager
def captured(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """What `graph` captures; skips the test where this cuSOLVER cannot be captured."""
    try:
        with torch.cuda.graph(graph):
            yield
    except RuntimeError as error:
        if "must need no host memory of cuSOLVER" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("k", [1, 2, 32, 33, 100, 300])
def test_decompositions_are_those_of_lapack(k: int) -> None:
    X = random(4, k + 5, k)
    G = X.mT @ X / k
    _, inverse, done = decompositions.inverse_of_cholesky_factor(G.cuda())
    assert done.all()
    assert_like_the_cpu(inverse, torch.linalg.inv(torch.linalg.cholesky(G)))
    A = X[:, :k] + X[:, :k].mT
    values, V, done = decompositions.eigh(A.cuda())
    assert done.all()
    assert_like_the_cpu(values, torch.linalg.eigvalsh(A))
    assert_like_the_cpu((V * values[:, None]) @ V.mT, A)
    R = X[:, :k]
    U, sigma, Vh, done = decompositions.svd(R.cuda())
    assert done.all()
    assert_like_the_cpu(sigma, torch.linalg.svdvals(R))
    assert_like_the_cpu((U * sigma[:, None]) @ Vh, R)


@pytest.mark.parametrize("name", ["inverse_of_cholesky_factor", "eigh", "svd"])
def test_ops_keep_their_promises_to_torch(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.fusedstep, name), (torch.eye(3).double().cuda()[None],))


@both
@every_driver
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("synchronize", [True, False])
def test_every_driver_agrees_with_the_cpu(
    dtype: torch.dtype, driver: str, shape: tuple[int, int], synchronize: bool
) -> None:
    A = matrices(shape, dtype, driver)
    B = random(len(A), shape[0], 3).to(dtype)
    expected, about = pinv(A, return_info=True)
    options = {"driver": driver, "synchronize": synchronize}
    actual, info = pinv(A.cuda(), return_info=True, **options)
    assert_like_the_cpu(actual, expected)
    assert info.rank.tolist() == about.rank.tolist()
    assert not info.code.any()
    assert_like_the_cpu(lstsq(A.cuda(), B.cuda(), **options), lstsq(A, B), atol=1e-4)


@both
@pytest.mark.parametrize("k", [5, 40, 300])
@pytest.mark.parametrize("synchronize", [True, False])
def test_hermitian_matrices_agree_with_the_cpu(
    dtype: torch.dtype, k: int, synchronize: bool
) -> None:
    A = random(3, k, k) + 3 * math.sqrt(k) * torch.eye(k, dtype=F64)
    A = (A + A.mT).to(dtype)
    actual = pinv(A.cuda(), hermitian=True, synchronize=synchronize)
    assert_like_the_cpu(actual, pinv(A, hermitian=True))


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("k", [12, 40, 100])
def test_float64_loses_no_more_than_the_condition(condition: float, k: int) -> None:
    A = conditioned(3 * k, k, condition)
    truth = refined_pinv(A)
    for driver in ("auto", "qr_svd", "jacobi"):
        error = relative_error(pinv(A.cuda(), rtol=0.0, driver=driver).cpu(), truth)
        assert error <= 100 * condition * 2.0**-53 * math.sqrt(k)


@both
@every_driver
def test_batches_beyond_what_cusolver_takes(dtype: torch.dtype, driver: str) -> None:
    A = random(40_000, 4, 3).to(dtype) + torch.eye(4, 3, dtype=dtype)
    actual, info = pinv(A.cuda(), rtol=0.0, driver=driver, return_info=True)
    expected, about = pinv(A, rtol=0.0, driver=driver, return_info=True)
    assert info.code.tolist() == about.code.tolist()
    error = (actual.cpu() - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    unit = 2.0**-53 if dtype == F64 else 2.0**-24
    fine = about.code == 0
    assert (error[fine] <= 1e4 * unit / about.rcond[fine].clamp(min=1e-6)).all()


@both
@every_driver
@pytest.mark.parametrize("k", [5, 40])
def test_a_matrix_that_is_not_finite_fails_alone(dtype: torch.dtype, driver: str, k: int) -> None:
    A = matrices((k + 4, k), dtype, driver)
    A = torch.cat([A, A[:1], A[:1]])
    A[-1, 1, 1], A[-2, 0, 0] = math.nan, math.inf
    expected = pinv(A)
    for synchronize in (True, False):
        options = {"driver": driver, "synchronize": synchronize}
        actual, info = pinv(A.cuda(), return_info=True, **options)
        assert info.code.tolist() == [0] * (len(A) - 2) + [1, 1]
        assert_like_the_cpu(actual, expected)


def test_a_singular_matrix_among_others_fails_cholesky_alone() -> None:
    G = torch.eye(3, dtype=F64).repeat(5, 1, 1)
    G[2] = -1
    _, inverse, done = decompositions.inverse_of_cholesky_factor(G.cuda())
    assert done.tolist() == [True, True, False, True, True]
    assert torch.equal(inverse[done].cpu(), G[[0, 1, 3, 4]])


def warm(A: Tensor, driver: str, **options: Any) -> None:
    """The first calls make handles, which may wait."""
    warm_up(lambda: pinv(A, driver=driver, synchronize=False, **options))
    pinv(A, driver=driver, synchronize=False, **options)


@both
@every_driver
@pytest.mark.parametrize("k", [5, 40])
def test_nothing_waits_for_the_gpu(dtype: torch.dtype, driver: str, k: int) -> None:
    A, B = matrices((k + 4, k), dtype).cuda(), random(5, k + 4, 2).to(dtype).cuda()
    warm(A, driver)
    lstsq(A, B, driver=driver, synchronize=False)
    with waiting_is_an_error():
        pinv(A, driver=driver, synchronize=False)
        lstsq(A, B, driver=driver, synchronize=False)


@both
@every_driver
@pytest.mark.parametrize("k", [5, 40])
def test_a_graph_captures_it(dtype: torch.dtype, driver: str, k: int) -> None:
    """And what runs between the replays does not disturb their memory."""
    batches = [matrices((k + 4, k), dtype, driver).roll(i, 0) for i in range(3)]
    A, B = batches[0].cuda(), random(len(batches[0]), k + 4, 2).to(dtype)
    static_B = B.cuda()
    warm(A, driver)
    warm_up(lambda: lstsq(A, static_B, driver=driver, synchronize=False))
    graph = torch.cuda.CUDAGraph()
    with captured(graph):
        P, info = pinv(A, driver=driver, synchronize=False, return_info=True)
        X = lstsq(A, static_B, driver=driver, synchronize=False)
    for batch in batches:
        A.copy_(batch)
        pinv(torch.rand_like(A), driver=driver)
        graph.replay()
        assert_like_the_cpu(P, pinv(batch))
        assert_like_the_cpu(X, lstsq(batch, B), atol=1e-4)
        assert not info.code.any()


def test_a_graph_captures_hermitian_matrices() -> None:
    A = (random(3, 8, 8) + 9 * torch.eye(8, dtype=F64)).cuda()
    A = A + A.mT
    warm(A, "eigh", hermitian=True)
    graph = torch.cuda.CUDAGraph()
    with captured(graph):
        P = pinv(A, hermitian=True, synchronize=False)
    A.mul_(2)
    graph.replay()
    assert_like_the_cpu(P, torch.linalg.inv(A.cpu()))


def test_threads_and_streams_do_not_disturb_one_another() -> None:
    batches = [random(50, 60, 40, seed=seed) for seed in range(8)]
    expected = [pinv(batch) for batch in batches]

    def work(i: int) -> Tensor:
        stream = torch.cuda.Stream() if i % 2 else torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            A = batches[i].cuda()
            for driver in ("eigh", "auto", "qr_svd"):
                result = pinv(A, driver=driver)
            stream.synchronize()
            return result.cpu()

    with ThreadPoolExecutor(4) as pool:
        for actual, truth in zip(pool.map(work, range(8)), expected, strict=True):
            assert_like_the_cpu(actual, truth)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_that_is_not_the_current_one() -> None:
    A = matrices((9, 5), F64)
    with torch.cuda.device(0):
        assert_like_the_cpu(pinv(A.to("cuda:1"), driver="eigh"), pinv(A))
        assert torch.cuda.current_device() == 0
