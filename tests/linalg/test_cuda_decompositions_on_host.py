"""The decompositions of csrc/cuda on the host, over stand-ins for cuBLAS and cuSOLVER that refuse
what the real ones refuse (tests/simt/torch/solvers.cpp): against LAPACK, one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.matrices import conditioned, positive, random

pytestmark = pytest.mark.slow

ops = torch.ops.fusedstep
F64 = torch.float64
SIZES = [1, 2, 32, 33, 100]
NAMES = ["inverse_of_cholesky_factor", "eigh", "svd"]
every_op = pytest.mark.parametrize("name", NAMES)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("count", [3, 9])
def test_the_inverse_factor_is_that_of_lapack(on_simt: Any, count: int, k: int) -> None:
    """Of a few larger matrices one by one."""
    G, before = positive(count, k), on_simt.library_calls()
    L, inverse, info = ops.inverse_of_cholesky_factor(G)
    assert on_simt.library_calls() - before == (6 if count == 3 and k == 100 else 2)
    assert info.dtype == torch.int32
    assert info.tolist() == [0] * count
    assert_close(L.tril(), torch.linalg.cholesky(G))
    assert_close(inverse, torch.linalg.inv(torch.linalg.cholesky(G)))
    assert torch.equal(inverse, inverse.tril()), "what is above the diagonal is zero to the bit"


@pytest.mark.parametrize("k", [3, 70])
def test_one_that_is_not_positive_definite_fails_alone(on_simt: Any, k: int) -> None:
    G = positive(4, k)
    G[1] = -G[1]
    G[2, k - 1, k - 1] = math.nan
    _, inverse, info = ops.inverse_of_cholesky_factor(G)
    assert info.tolist() == [0, 1, k, 0]
    assert_close(inverse[::3], torch.linalg.inv(torch.linalg.cholesky(G[::3])))


@pytest.mark.parametrize("k", SIZES)
def test_eigenvalues_are_those_of_lapack(on_simt: Any, k: int) -> None:
    A = random(3, k, k)
    A = A + A.mT
    values, vectors, info = ops.eigh(A)
    assert info.tolist() == [0, 0, 0]
    assert_close(values, torch.linalg.eigvalsh(A))
    assert_close((vectors * values[:, None]) @ vectors.mT, A)
    assert_close(vectors.mT @ vectors, torch.eye(k, dtype=F64).expand(3, k, k))


def test_eigh_reads_the_lower_triangle(on_simt: Any) -> None:
    A = random(2, 7, 7)
    values, *_ = ops.eigh(A)
    assert_close(values, torch.linalg.eigvalsh(A, UPLO="L"))


@pytest.mark.parametrize("k", [1, 2, 31, 32])
@pytest.mark.parametrize("rank", [None, 1, 0])
def test_singular_values_are_those_of_lapack(on_simt: Any, k: int, rank: int | None) -> None:
    R = random(3, k, k) if rank is None else torch.stack([conditioned(k, k, 2.0, rank)] * 3)
    U, values, Vh, info = ops.svd(R)
    assert info.tolist() == [0, 0, 0]
    assert_close(values, torch.linalg.svdvals(R))
    assert_close((U * values[:, None]) @ Vh, R)
    for basis in (U, Vh):
        assert_close(basis.mT @ basis, torch.eye(k, dtype=F64).expand(3, k, k))


@every_op
def test_any_strides_and_what_is_given_stays(on_simt: Any, name: str) -> None:
    op, G = getattr(ops, name), positive(4, 6)
    wide = torch.zeros(4, 6, 12, dtype=F64)
    wide[:, :, ::2] = G
    expected = op(G)
    for same in (G.mT.contiguous().mT, wide[:, :, ::2], G[:1].expand(4, 6, 6)):
        before = same.clone()
        for a, b in zip(op(same), expected, strict=True):
            assert torch.equal(a[:1], b[:1])
        assert torch.equal(same, before)


@every_op
@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 0), (0, 0, 0)], ids=str)
def test_nothing_to_decompose_calls_nothing(
    on_simt: Any, name: str, shape: tuple[int, ...]
) -> None:
    before = on_simt.library_calls()
    *results, info = getattr(ops, name)(torch.empty(shape, dtype=F64))
    assert on_simt.library_calls() == before
    assert info.tolist() == [0] * shape[0]
    assert all(result.numel() == 0 for result in results)


@every_op
def test_batches_beyond_what_the_libraries_take(on_simt: Any, name: str) -> None:
    """In three pieces of at most 16384; and the infos lie where their matrices do."""
    G, before = positive(40_000, 2), on_simt.library_calls()
    bad = [5, 16384 + 5, 2 * 16384 + 5]
    if name == "inverse_of_cholesky_factor":
        G[bad] *= -1
    else:
        on_simt.gives_up(5)
    *results, info = getattr(ops, name)(G)
    calls = on_simt.library_calls() - before
    assert calls == (6 if name == "inverse_of_cholesky_factor" else 3)
    assert info.nonzero().flatten().tolist() == bad
    fine = info == 0
    if name == "inverse_of_cholesky_factor":
        assert_close(results[1][fine], torch.linalg.inv(torch.linalg.cholesky(G[fine])))
    else:
        values = results[0] if name == "eigh" else results[1]
        assert_close(values[fine].sort().values, torch.linalg.eigvalsh(G[fine]))


def test_pieces_hold_no_more_elements_than_an_int_counts(on_simt: Any) -> None:
    assert on_simt.pieces(40_000, 4) == [16384, 16384, 7232]
    assert on_simt.pieces(16384, 1) == [16384]
    assert on_simt.pieces(5, 2**30) == [1] * 5
    assert on_simt.pieces(5, 2**30 - 1) == [2, 2, 1]
    assert on_simt.pieces(9000, 512 * 512) == [8191, 809]
    assert on_simt.pieces(7, 0) == on_simt.pieces(0, 9) == []


@pytest.mark.parametrize(
    ("name", "batch", "must"),
    [
        ("eigh", torch.ones(2, 3, 3), "A must be a dense float64 tensor"),
        ("eigh", random(3, 3), "A must have 3 dimensions, got float64 with shape .3, 3. "),
        ("eigh", random(2, 3, 4), "A must be square, got float64 with shape .2, 3, 4. "),
        ("eigh", torch.empty(0, 46341, 46341, dtype=F64), "A must have at most 46340 rows"),
        (
            "svd",
            random(2, 33, 33),
            "R must have at most 32 rows, got float64 with shape .2, 33, 33. ",
        ),
        (
            "inverse_of_cholesky_factor",
            random(2, 4, 3),
            "G must be square, got float64 with shape .2, 4, 3. ",
        ),
    ],
)
def test_refused_batches(on_simt: Any, name: str, batch: Tensor, must: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: {must}"):
        getattr(ops, name)(batch)


@pytest.mark.parametrize(
    ("call", "name", "k"),
    [
        ("cusolverDnXsyevBatched", "eigh", 3),
        ("cusolverDnDgesvdjBatched", "svd", 3),
        ("cusolverDnDpotrfBatched", "inverse_of_cholesky_factor", 3),
        ("cublasDtrsmBatched", "inverse_of_cholesky_factor", 3),
        ("cusolverDnDpotrf", "inverse_of_cholesky_factor", 70),
        ("cublasDtrsm", "inverse_of_cholesky_factor", 70),
    ],
)
def test_a_call_that_fails_is_named_with_its_status(
    on_simt: Any, call: str, name: str, k: int
) -> None:
    op, library = getattr(ops, name), "CUSOLVER" if "solver" in call else "CUBLAS"
    on_simt.fail_next(call)
    message = rf"^fusedstep: {call}(_v2)? failed: {library}_STATUS_ALLOC_FAILED"
    with pytest.raises(RuntimeError, match=message):
        op(positive(2, k))
    assert not op(positive(2, k))[-1].any(), "the next call is not disturbed"


def test_without_the_libraries_one_sentence(on_simt: Any) -> None:
    on_simt.libraries_missing(True)
    with pytest.raises(RuntimeError, match=r"^fusedstep: no libcusolver.so.12: not here"):
        ops.eigh(positive(2, 3))


def test_handles_are_made_once(on_simt: Any) -> None:
    ops.eigh(positive(2, 3))
    before = on_simt.library_handles()
    assert before >= 4
    for op in (ops.eigh, ops.svd, ops.inverse_of_cholesky_factor):
        op(positive(2, 3))
    assert on_simt.library_handles() == before


@every_op
def test_a_capture_forbids_none_of_the_calls(on_simt: Any, name: str) -> None:
    """Nor their handles' making, where another thread captures in the strictest mode."""
    op = getattr(ops, name)
    expected = op(positive(2, 3))
    on_simt.libraries_missing(True)
    with pytest.raises(RuntimeError):
        op(positive(2, 3))  # the handles are gone
    on_simt.libraries_missing(False)
    on_simt.begin_capture_elsewhere()
    again = op(positive(2, 3))
    assert on_simt.library_handles() == 4
    assert on_simt.end_capture_elsewhere(), "a forbidden call made the capture invalid"
    for a, b in zip(again, expected, strict=True):
        assert torch.equal(a, b)
    on_simt.begin_capture()
    on_simt.host_work(0)
    op(positive(2, 3))
    on_simt.host_work(16)
    kernels = on_simt.end_capture()
    assert len(kernels) == (3 if name == "inverse_of_cholesky_factor" else 1)


def test_a_capture_is_refused_where_cusolver_wants_memory_of_the_host(on_simt: Any) -> None:
    """A replay might read it; nothing is launched, and another capture is not disturbed."""
    calls = on_simt.library_calls()
    on_simt.begin_capture()
    message = (
        "eigh: A must need no host memory of cuSOLVER while a CUDA graph is captured, "
        "got 16 bytes for 16384 matrices of 2 rows"
    )
    with pytest.raises(RuntimeError, match=message):
        ops.eigh(positive(20_000, 2))
    assert on_simt.end_capture() == []
    assert on_simt.library_calls() == calls
    assert not ops.eigh(positive(2, 3))[-1].any()


def test_handles_that_cannot_be_made_leave_nothing_behind(on_simt: Any) -> None:
    on_simt.libraries_missing(True)
    with pytest.raises(RuntimeError):
        ops.eigh(positive(2, 3))
    assert on_simt.library_handles() == 0, "those that there were are gone"
    on_simt.libraries_missing(False)
    for call in ("cublasCreate", "cusolverDnCreate", "cusolverDnCreateGesvdjInfo"):
        on_simt.fail_next(call)
        with pytest.raises(RuntimeError, match=f"{call}.* failed: CU.*_STATUS_ALLOC_FAILED"):
            ops.eigh(positive(2, 3))
        assert on_simt.library_handles() == 0
    assert not ops.eigh(positive(2, 3))[-1].any()


@every_op
def test_fakes_promise_what_comes(on_simt: Any, name: str) -> None:
    G = positive(3, 4)
    with FakeTensorMode() as mode:
        promised = getattr(ops, name)(mode.from_tensor(G))
    for real, fake in zip(getattr(ops, name)(G), promised, strict=True):
        assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)
