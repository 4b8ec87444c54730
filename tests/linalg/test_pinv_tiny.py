"""Pseudo-inverses of matrices up to 32 x 32, which one kernel computes: accuracy, ranks, bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import fusedstep
from tests.support.matrices import UNIT, conditioned, refined_pinv, relative_error, true_pinv
from tests.support.matrices import with_singular_values as with_sigma
from tests.support.on_host import on_cpu
from tests.support.tensors import assert_same_bits, name_of

op = torch.ops.fusedstep.pinv_tiny
alike = op.alike
lstsq_op = torch.ops.fusedstep.lstsq_tiny.default
F64 = torch.float64
SHAPES = ((1, 1), (32, 1), (1, 32), (5, 3), (8, 8), (9, 16), (16, 16), (32, 20), (17, 32), (32, 32))
DONE, NOT_FINITE = 0, 1
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
both = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
drivers = pytest.mark.parametrize("driver", ["auto", "jacobi"])


def pinv(A: Tensor, driver: str = "auto", **options) -> tuple[Tensor, fusedstep.linalg.PinvInfo]:
    return fusedstep.pinv(A, driver=driver, return_info=True, **options)


def eps(A: Tensor) -> float:
    return torch.finfo(A.dtype).eps * max(A.shape[-2:])


def arguments(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str, count: int = 37
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every kind one: regular, of deficient rank, zero, not finite, hardly regular."""
    m, n = shape
    generator = torch.Generator().manual_seed(m * n)
    A = torch.randn(count, m, n, dtype=F64, generator=generator)
    A[1::5, :, -1] = A[1::5, :, 0]
    A[2::10] = 0
    A[3::10, m // 2, n // 2] = math.nan
    A[8::10, 0, 0] = math.inf
    A[4::5] *= 10.0 ** -torch.arange(n)
    atol = torch.where(torch.arange(count) % 7 == 6, 0.1, 0.0).to(F64)
    return A.to(device, dtype), atol.to(device), torch.full_like(atol, 1e-6, device=device)


@shapes
@drivers
@pytest.mark.parametrize("condition", [1.0, 1e1, 1e3, 1e5, 1e6])
@pytest.mark.parametrize("rtol", [None, 1e-8])
def test_float32_is_rounded_once_and_never_worse_than_torch(shape, driver, condition, rtol) -> None:
    A = conditioned(*shape, condition, seed=3).float()
    kept = eps(A) if rtol is None else rtol
    sigma = torch.linalg.svdvals(A.double())
    if (sigma / sigma[0] / kept).log().abs().min() < 0.05:
        pytest.skip("a singular value lies on the threshold")
    truth = true_pinv(A, kept)
    actual, info = pinv(A, driver, rtol=rtol)
    assert info.rank == (sigma > kept * sigma[0]).sum()
    error = relative_error(actual, truth)
    assert error <= UNIT[torch.float32]
    assert error <= max(relative_error(torch.linalg.pinv(A, rtol=rtol), truth), 2.0**-26)


@shapes
@drivers
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12])
def test_float64_loses_one_condition_number(shape, driver, condition) -> None:
    A = conditioned(*shape, condition, seed=4)
    actual, info = pinv(A, driver)
    k = min(shape)
    assert info.rank == k
    condition = condition if k > 1 else 1.0
    error = relative_error(actual, refined_pinv(A))
    assert error <= 100 * condition * UNIT[F64] * k**0.5
    theirs = relative_error(torch.linalg.pinv(A), refined_pinv(A))
    assert error <= max(4 * theirs, 10 * condition * UNIT[F64])


@both
@drivers
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (10, 10)], ids=str)
def test_the_conditions_of_penrose_at_every_rank(dtype, driver, shape) -> None:
    ranks = range(min(shape) + 1)
    matrices = [conditioned(*shape, 30.0, rank, seed=rank) for rank in ranks]
    A = torch.stack(matrices).to(dtype)
    P, info = pinv(A, driver)
    assert info.rank.tolist() == list(ranks) == torch.linalg.matrix_rank(A).tolist()
    assert not info.code.any()
    A, P = A.double(), P.double()
    AP, PA = A @ P, P @ A
    for left, right in ((AP @ A, A), (PA @ P, P), (AP, AP.mT), (PA, PA.mT)):
        bound = 1000 * UNIT[dtype] * right.abs().amax((1, 2)).clamp(min=1)
        assert ((left - right).abs().amax((1, 2)) <= bound).all()


@both
@drivers
@pytest.mark.parametrize("beside", [0.5, 0.9, 0.999, 1.001, 1.1, 2.0])
@pytest.mark.parametrize("threshold", [1e-1, 1e-3])
def test_ranks_are_torchs_next_to_the_threshold(dtype, driver, beside, threshold) -> None:
    sigma = torch.cat([torch.linspace(1, 0.2, 9), torch.tensor([threshold * beside])]).to(F64)
    A = torch.stack([with_sigma(20, 10, sigma, seed) for seed in range(5)]).to(dtype)
    expected = torch.linalg.matrix_rank(A, rtol=threshold)
    assert torch.equal(pinv(A, driver, rtol=threshold)[1].rank, expected)
    assert torch.equal(pinv(A, driver, atol=threshold)[1].rank, expected)


@drivers
def test_rcond_is_the_ratio_or_a_bound_below(driver) -> None:
    A = torch.stack([conditioned(14, 11, 10.0**c, seed=c) for c in range(8)])
    ratio = 10.0 ** -torch.arange(8, dtype=F64)
    rcond = pinv(A, driver)[1].rcond
    assert (rcond <= ratio * (1 + 1e-6)).all()
    assert (rcond >= ratio * (1 / 12 if driver == "auto" else 1 - 1e-6)).all()


@both
@drivers
def test_a_matrix_alone_decides_what_becomes_of_it(dtype, driver) -> None:
    """The same bits for any neighbours, layout and number of threads."""
    A, atol, rtol = arguments((9, 7), dtype, "cpu")
    together, info = pinv(A, driver, atol=atol, rtol=rtol)
    wide, _ = pinv(A.mT, driver, atol=atol, rtol=rtol)
    assert_same_bits(wide.mT.contiguous(), together, "wide")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            many, _ = pinv(A.repeat(40, 1, 1), driver, atol=atol.repeat(40), rtol=1e-6)
            assert_same_bits(many, together.repeat(40, 1, 1), f"{count} threads")
    finally:
        torch.set_num_threads(threads)
    for i in range(len(A)):
        alone, about = pinv(A[i], driver, atol=atol[i], rtol=1e-6)
        assert_same_bits(alone, together[i], f"matrix {i}")
        assert_same_bits(torch.stack(about[:2]), torch.stack([t[i] for t in info[:2]]), f"{i}")


@both
@drivers
def test_what_is_not_finite_becomes_nan_alone_and_zero_stays_zero(dtype, driver) -> None:
    A, atol, rtol = arguments((6, 6), dtype, "cpu")
    P, rank, code, rcond = op(A, atol, rtol, driver == "jacobi")
    bad = ~A.isfinite().flatten(1).all(1)
    assert torch.equal(code == NOT_FINITE, bad)
    assert torch.equal(code == DONE, ~bad)
    assert torch.equal(P.isnan().flatten(1).all(1), bad)
    assert P[~bad].isfinite().all()
    assert torch.equal(rcond.isnan(), bad)
    zero = (A == 0).flatten(1).all(1)
    assert zero.any()
    assert torch.equal(rank == 0, bad | zero)
    assert not P[zero].any()
    assert not rcond[zero].any()


@drivers
@pytest.mark.parametrize("scale", [2.0**996, 2.0**-1000, 2.0**-1016])
def test_any_scale_gives_the_same_digits(driver, scale) -> None:
    """2^-1016 makes the smaller elements denormal, which rounds them."""
    A = torch.stack([conditioned(9, 4, 100.0, rank, seed=5) for rank in (4, 2)])
    A = (A * scale) / scale
    plain, info = pinv(A, driver, rtol=1e-9)
    scaled, about = pinv(A * scale, driver, rtol=1e-9)
    assert torch.equal(scaled * scale, plain)
    assert torch.equal(about.rank, info.rank)
    assert torch.equal(about.rcond, info.rcond)
    assert (
        pinv(A * scale, driver, atol=scale / 5)[1].rank.tolist()
        == pinv(A, driver, atol=0.2)[1].rank.tolist()
    )


@both
@drivers
def test_denormals_have_inverses(dtype, driver) -> None:
    least = torch.finfo(dtype).tiny / 2
    A = torch.diag(torch.tensor([least, 4 * least, 0.0], dtype=dtype))
    expected = torch.diag(torch.tensor([1 / least, 0.25 / least, 0.0], dtype=dtype))
    assert torch.equal(pinv(A, driver)[0], expected)


@drivers
def test_rotations_end_where_columns_are_only_noise(driver) -> None:
    """In some of these rounding errors shorten columns until their squares are denormal."""
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.randn(4000, 32, 1, dtype=F64, generator=generator) for _ in range(2))
    A = (u / u.norm(dim=1, keepdim=True)) @ (v / v.norm(dim=1, keepdim=True)).mT
    P, info = pinv(A, driver)
    assert not info.code.any()
    assert (info.rank == 1).all()
    torch.testing.assert_close(P, A.mT, rtol=1e-12, atol=1e-15)


@drivers
def test_tolerances_of_each_matrix(driver) -> None:
    A = torch.diag(torch.tensor([1.0, 0.5, 0.25], dtype=F64)).repeat(7, 1, 1)
    atol = torch.tensor([0, 0, 0, 0.25, 0.5, 9.0, math.nan], dtype=F64)
    rtol = torch.tensor([0, 0.25, 0.5, 0.1, 0, 0, 0], dtype=F64)
    P, info = pinv(A, driver, atol=atol, rtol=rtol)
    assert info.rank.tolist() == [3, 2, 1, 2, 1, 0, 0]
    for inverse, rank in zip(P, info.rank, strict=True):
        expected = torch.tensor([1.0, 2.0, 4.0], dtype=F64).masked_fill(torch.arange(3) >= rank, 0)
        assert torch.equal(inverse, torch.diag(expected))


@both
def test_opcheck(dtype, device) -> None:
    for shape, count in (((5, 3), 4), ((3, 5), 4), ((4, 4), 0)):
        A, *tolerances = arguments(shape, dtype, device, count)
        A = A.nan_to_num(1, 1)  # it finds NaNs to differ
        opcheck(op.default, (A, *tolerances, False))
        opcheck(alike, (A, 0.0, 1e-6, False))
        for columns in (2, 0):
            opcheck(lstsq_op, (A, A.new_ones(*A.shape[:-1], columns), 0.0, 1e-6, False))


@both
@shapes
@drivers
def test_equal_tolerances_may_be_numbers(dtype, shape, driver) -> None:
    A, _, _ = arguments(shape, dtype, "cpu")
    atol, rtol = (torch.full((len(A),), value, dtype=F64) for value in (1e-3, 1e-6))
    expected, *_ = op(A, atol, rtol, driver == "jacobi")
    assert_same_bits(alike(A, 1e-3, 1e-6, driver == "jacobi"), expected, "together")
    for i in range(len(A)):
        assert_same_bits(alike(A[i], 1e-3, 1e-6, driver == "jacobi"), expected[i], f"{i}")


@both
@shapes
@drivers
def test_solutions_are_products_with_the_inverse(dtype, shape, driver) -> None:
    """To the rounding of the sums; each with the same bits for any neighbours."""
    A, _, _ = arguments(shape, dtype, "cpu")
    B = torch.randn(len(A), shape[0], 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    X = lstsq_op(A, B, 0.0, 1e-6, driver == "jacobi")
    P = alike(A.to(F64), 0.0, 1e-6, driver == "jacobi")
    scale = P.norm(dim=(1, 2)) * B.to(F64).norm(dim=(1, 2))
    error = (X.to(F64) - P @ B.to(F64)).norm(dim=(1, 2)) / scale
    bad = P.isnan().flatten(1).any(1)
    assert torch.equal(X.isnan().flatten(1).all(1), bad)
    assert (error.nan_to_num(0) <= 2 * UNIT[dtype]).all()
    for i in range(len(A)):
        alone = lstsq_op(A[i], B[i], 0.0, 1e-6, driver == "jacobi")
        assert_same_bits(alone, X[i], f"matrix {i}")
    assert_same_bits(lstsq_op(A.to(F64), B.to(F64), 0.0, 1e-6, driver == "jacobi").to(dtype), X, "")


@both
@pytest.mark.parametrize("shape", [(32, 32), (24, 9), (9, 24), (3, 3)], ids=str)
def test_a_deficient_rank_takes_no_rotations_and_is_as_accurate(dtype, shape) -> None:
    """By reflections alone rcond is a bound, while Jacobi finds the ratio itself."""
    for rank in range(1, min(shape)):
        A = conditioned(*shape, 30.0, rank, seed=rank).to(dtype)
        P, info = pinv(A)
        by_rotations, about = pinv(A, "jacobi")
        assert info.rank == about.rank == rank
        assert info.rcond < about.rcond or rank == 1
        truth = true_pinv(A, eps(A))
        assert relative_error(P, truth) <= (UNIT[dtype] if dtype != F64 else 1e-13)
        assert relative_error(by_rotations, truth) <= (UNIT[dtype] if dtype != F64 else 1e-13)


def test_neighbours_of_every_rank_change_no_bits() -> None:
    A = torch.stack([conditioned(12, 9, 30.0, rank, seed=rank) for rank in range(10)] * 3)
    for dtype in (F64, torch.float32):
        given = A.to(dtype)[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
        together = alike(given, 0.0, 1e-5, False)
        for matrix, inverse in zip(given, together, strict=True):
            assert_same_bits(alike(matrix, 0.0, 1e-5, False), inverse, "alone")


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t.half(), "A must be a dense float32 or float64 tensor, got float16"),
        (0, lambda t: t[0], "A must have 3 dimensions, got float"),
        (0, lambda t: t.mT, "A must be contiguous, got float"),
        (0, lambda t: t.repeat(1, 7, 1), "A must have at most 32 rows and columns, got .*35, "),
        (1, lambda t: t.float(), "atol must be a dense float64 tensor, got float32"),
        (1, lambda t: t[:-1], r"atol must have the shape \[4\], got float64 with shape \[3\]"),
        (2, lambda t: t[:, None], r"rtol must have the shape \[4\], got .*\[4, 1\]"),
    ],
)
def test_refused(position, change, message) -> None:
    given = [*arguments((5, 3), F64, "cpu", 4)]
    given[position] = change(given[position])
    with pytest.raises(RuntimeError, match=f"pinv_tiny: {message}"):
        op(*given, False)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t.half(), "A must be a dense float32 or float64 tensor, got float16"),
        (0, lambda t: t[0, 0], "A must have two or more dimensions, got float"),
        (0, lambda t: t.mT, "A must be contiguous, got float"),
        (0, lambda t: t.repeat(1, 7, 1), "A must have at most 32 rows and columns, got .*35, "),
        (1, lambda t: t.float(), "B must be a dense float64 tensor, got float32"),
        (1, lambda t: t[0], "B must have 3 dimensions, got float"),
        (1, lambda t: t.mT, "B must be contiguous, got float"),
        (1, lambda t: t.repeat(1, 1, 17), r"B must have at most 32 columns, got .*34\]"),
        (1, lambda t: t[:3], "B must have A's sizes, but for the last, got .*3, 5, 2"),
        (1, lambda t: t[:, :4].contiguous(), "B must have A's sizes, but for the last, got .*4, 2"),
        (2, lambda _: -1.0, "atol must be 0 or more, got -1"),
        (3, lambda _: math.nan, "rtol must be 0 or more, got nan"),
    ],
)
def test_refused_with_numbers(position, change, message) -> None:
    given = [arguments((5, 3), F64, "cpu", 4)[0], torch.ones(4, 5, 2, dtype=F64), 0.0, 0.0]
    given[position] = change(given[position])
    with pytest.raises(RuntimeError, match=f"lstsq_tiny: {message}"):
        lstsq_op(*given, False)
    if position != 1:
        with pytest.raises(RuntimeError, match=f"pinv_tiny: {message}"):
            alike(given[0], *given[2:], False)


@pytest.mark.slow
@both
@pytest.mark.parametrize("jacobi", [False, True])
def test_the_cuda_op_on_the_host(on_simt, dtype, jacobi) -> None:
    for shape, count in (((7, 3), 21), ((9, 16), 9), ((4, 4), 0)):
        given = *arguments(shape, dtype, "cpu", count), jacobi
        names = ("P", "rank", "code", "rcond")
        with on_cpu():
            expected = op(*given)
        for name, actual, of_cpu in zip(names, op(*given), expected, strict=True):
            assert_same_bits(actual, of_cpu, name)
        A = given[0]
        B = torch.randn(*A.shape[:-1], 2, generator=torch.Generator().manual_seed(1)).to(dtype)
        with on_cpu():
            P, X = alike(A, 0.0, 1e-6, jacobi), lstsq_op(A, B, 0.0, 1e-6, jacobi)
        assert_same_bits(alike(A, 0.0, 1e-6, jacobi), P, "P")
        assert_same_bits(lstsq_op(A, B, 0.0, 1e-6, jacobi), X, "X")
    on_simt.fail_next("cudaLaunchKernelEx")
    with pytest.raises(RuntimeError, match="launching the tiny pseudo-inverses"):
        op(*arguments((7, 3), dtype, "cpu", 4), jacobi)


@pytest.mark.gpu
@both
@shapes
@pytest.mark.parametrize("jacobi", [False, True])
def test_a_gpu_gives_the_bits_of_the_cpu(dtype, shape, jacobi) -> None:
    for count in (1, 5, 1000):
        on_cpu = op(*arguments(shape, dtype, "cpu", count), jacobi)
        on_gpu = op(*arguments(shape, dtype, "cuda", count), jacobi)
        for name, ours, theirs in zip(("P", "rank", "code", "rcond"), on_gpu, on_cpu, strict=True):
            assert_same_bits(ours.cpu(), theirs, f"{name} of {count}")
        A = arguments(shape, dtype, "cpu", count)[0]
        B = torch.randn(*A.shape[:-1], 2, generator=torch.Generator().manual_seed(1)).to(dtype)
        ours, theirs = (lstsq_op(*t, 0.0, 1e-6, jacobi) for t in ((A.cuda(), B.cuda()), (A, B)))
        assert_same_bits(ours.cpu(), theirs, f"X of {count}")
