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

F64 = torch.float64
SIZES = [1, 2, 32, 33, 100]
NAMES = ["inverse_of_cholesky_factor", "eigh", "svd"]
every_op = pytest.mark.parametrize("name", NAMES)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("count", [3, 9])
def test_the_inverse_factor_is_that_of_lapack(solver_ops: Any, count: int, k: int) -> None:
    """Of a few larger matrices one by one."""
    G, before = positive(count, k), solver_ops.library_calls()
    inverse, info = solver_ops.inverse_of_cholesky_factor(G)
    assert solver_ops.library_calls() - before == (6 if count == 3 and k == 100 else 2)
    assert info.dtype == torch.int32
    assert info.tolist() == [0] * count
    assert_close(inverse, torch.linalg.inv(torch.linalg.cholesky(G)))
    assert torch.equal(inverse, inverse.tril()), "what is above the diagonal is zero to the bit"


@pytest.mark.parametrize("k", [3, 70])
def test_one_that_is_not_positive_definite_fails_alone(solver_ops: Any, k: int) -> None:
    G = positive(4, k)
    G[1] = -G[1]
    G[2, k - 1, k - 1] = math.nan
    inverse, info = solver_ops.inverse_of_cholesky_factor(G)
    assert info.tolist() == [0, 1, k, 0]
    assert_close(inverse[::3], torch.linalg.inv(torch.linalg.cholesky(G[::3])))


@pytest.mark.parametrize("k", SIZES)
def test_eigenvalues_are_those_of_lapack(solver_ops: Any, k: int) -> None:
    A = random(3, k, k)
    A = A + A.mT
    values, vectors, info = solver_ops.eigh(A)
    assert info.tolist() == [0, 0, 0]
    assert_close(values, torch.linalg.eigvalsh(A))
    assert_close((vectors * values[:, None]) @ vectors.mT, A)
    assert_close(vectors.mT @ vectors, torch.eye(k, dtype=F64).expand(3, k, k))


def test_eigh_reads_the_lower_triangle(solver_ops: Any) -> None:
    A = random(2, 7, 7)
    values, *_ = solver_ops.eigh(A)
    assert_close(values, torch.linalg.eigvalsh(A, UPLO="L"))


@pytest.mark.parametrize("k", [1, 2, 31, 32])
@pytest.mark.parametrize("rank", [None, 1, 0])
def test_singular_values_are_those_of_lapack(solver_ops: Any, k: int, rank: int | None) -> None:
    R = random(3, k, k) if rank is None else torch.stack([conditioned(k, k, 2.0, rank)] * 3)
    U, values, Vh, info = solver_ops.svd(R)
    assert info.tolist() == [0, 0, 0]
    assert_close(values, torch.linalg.svdvals(R))
    assert_close((U * values[:, None]) @ Vh, R)
    for basis in (U, Vh):
        assert_close(basis.mT @ basis, torch.eye(k, dtype=F64).expand(3, k, k))


@every_op
def test_any_strides_and_what_is_given_stays(solver_ops: Any, name: str) -> None:
    op, G = getattr(solver_ops, name), positive(4, 6)
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
    solver_ops: Any, name: str, shape: tuple[int, ...]
) -> None:
    before = solver_ops.library_calls()
    *results, info = getattr(solver_ops, name)(torch.empty(shape, dtype=F64))
    assert solver_ops.library_calls() == before
    assert info.tolist() == [0] * shape[0]
    assert all(result.numel() == 0 for result in results)


@every_op
def test_batches_beyond_what_the_libraries_take(solver_ops: Any, name: str) -> None:
    """In three pieces of at most 16384; and the infos lie where their matrices do."""
    G, before = positive(40_000, 2), solver_ops.library_calls()
    bad = [5, 16384 + 5, 2 * 16384 + 5]
    if name == "inverse_of_cholesky_factor":
        G[bad] *= -1
    else:
        solver_ops.gives_up(5)
    *results, info = getattr(solver_ops, name)(G)
    calls = solver_ops.library_calls() - before
    assert calls == (6 if name == "inverse_of_cholesky_factor" else 3)
    assert info.nonzero().flatten().tolist() == bad
    fine = info == 0
    if name == "inverse_of_cholesky_factor":
        assert_close(results[0][fine], torch.linalg.inv(torch.linalg.cholesky(G[fine])))
    else:
        values = results[0] if name == "eigh" else results[1]
        assert_close(values[fine].sort().values, torch.linalg.eigvalsh(G[fine]))


def test_pieces_hold_no_more_elements_than_an_int_counts(solver_ops: Any) -> None:
    assert solver_ops.pieces(40_000, 4) == [16384, 16384, 7232]
    assert solver_ops.pieces(16384, 1) == [16384]
    assert solver_ops.pieces(5, 2**30) == [1] * 5
    assert solver_ops.pieces(5, 2**30 - 1) == [2, 2, 1]
    assert solver_ops.pieces(9000, 512 * 512) == [8191, 809]
    assert solver_ops.pieces(7, 0) == solver_ops.pieces(0, 9) == []


@pytest.mark.parametrize(
    ("name", "batch", "must"),
    [
        ("eigh", torch.ones(2, 3, 3), "A must be a dense float64 tensor"),
        ("eigh", random(3, 3), "A must have three dimensions, got 2"),
        ("eigh", random(2, 3, 4), "A must be square, got 3 by 4"),
        ("eigh", torch.empty(0, 46341, 46341, dtype=F64), "A must have at most 46340 rows"),
        ("svd", random(2, 33, 33), "R must have at most 32 rows, got 33"),
        ("inverse_of_cholesky_factor", random(2, 4, 3), "G must be square, got 4 by 3"),
    ],
)
def test_refused_batches(solver_ops: Any, name: str, batch: Tensor, must: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: {must}"):
        getattr(solver_ops, name)(batch)


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
    solver_ops: Any, call: str, name: str, k: int
) -> None:
    op, library = getattr(solver_ops, name), "CUSOLVER" if "solver" in call else "CUBLAS"
    solver_ops.fail_next(call)
    message = rf"^fusedstep: {call}(_v2)? failed: {library}_STATUS_ALLOC_FAILED"
    with pytest.raises(RuntimeError, match=message):
        op(positive(2, k))
    assert not op(positive(2, k))[-1].any(), "the next call is not disturbed"


def test_without_the_libraries_one_sentence(solver_ops: Any) -> None:
    solver_ops.libraries_missing(True)
    with pytest.raises(RuntimeError, match=r"^fusedstep: no libcusolver.so.12: not here"):
        solver_ops.eigh(positive(2, 3))


def test_handles_are_made_once(solver_ops: Any) -> None:
    solver_ops.eigh(positive(2, 3))
    before = solver_ops.library_handles()
    assert before >= 4
    for op in (solver_ops.eigh, solver_ops.svd, solver_ops.inverse_of_cholesky_factor):
        op(positive(2, 3))
    assert solver_ops.library_handles() == before


@every_op
def test_a_capture_forbids_none_of_the_calls(solver_ops: Any, name: str) -> None:
    """Nor their handles' making, where another thread captures in the strictest mode."""
    op = getattr(solver_ops, name)
    expected = op(positive(2, 3))
    solver_ops.libraries_missing(True)
    with pytest.raises(RuntimeError):
        op(positive(2, 3))  # the handles are gone
    solver_ops.libraries_missing(False)
    solver_ops.begin_capture_elsewhere()
    again = op(positive(2, 3))
    assert solver_ops.library_handles() == 4
    assert solver_ops.end_capture_elsewhere(), "a forbidden call made the capture invalid"
    for a, b in zip(again, expected, strict=True):
        assert torch.equal(a, b)
    solver_ops.begin_capture()
    op(positive(2, 3))
    kernels = solver_ops.end_capture()
    assert len(kernels) == (3 if name == "inverse_of_cholesky_factor" else 1)


def test_handles_that_cannot_be_made_leave_nothing_behind(solver_ops: Any) -> None:
    solver_ops.libraries_missing(True)
    with pytest.raises(RuntimeError):
        solver_ops.eigh(positive(2, 3))
    assert solver_ops.library_handles() == 0, "those that there were are gone"
    solver_ops.libraries_missing(False)
    for call in ("cublasCreate", "cusolverDnCreate", "cusolverDnCreateGesvdjInfo"):
        solver_ops.fail_next(call)
        with pytest.raises(RuntimeError, match=f"{call}.* failed: CU.*_STATUS_ALLOC_FAILED"):
            solver_ops.eigh(positive(2, 3))
        assert solver_ops.library_handles() == 0
    assert not solver_ops.eigh(positive(2, 3))[-1].any()


@every_op
def test_fakes_promise_what_comes(solver_ops: Any, name: str) -> None:
    G = positive(3, 4)
    with FakeTensorMode() as mode:
        promised = getattr(torch.ops.fusedstep, name)(mode.from_tensor(G))
    for real, fake in zip(getattr(solver_ops, name)(G), promised, strict=True):
        assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)
