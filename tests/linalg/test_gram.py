"""The op for Gram matrices: its bits, with fused multiply-adds or without; what it refuses; and
its CUDA kernels, on a GPU and on the host, to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import fusedstep  # noqa: F401  # registers the op
from tests.reference.gram import gram
from tests.support.tensors import assert_same_bits, name_of, threads

op = torch.ops.fusedstep.gram_
NARROW = (torch.float32, torch.bfloat16, torch.float16)


def arguments(count: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A matrix to add to, and rows of very different sizes: their sums round at every addition."""
    generator = torch.Generator().manual_seed(count + width)
    exponents = torch.randn(count, width, generator=generator) * (3 if dtype.itemsize == 2 else 12)
    rows = torch.randn(count, width, generator=generator) * exponents.exp2()
    before = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return before, rows.to(dtype)


def expected(before: Tensor, rows: Tensor) -> Tensor:
    return torch.from_numpy(gram(before.numpy(), rows.float().numpy())).tril()


@pytest.mark.parametrize("dtype", NARROW, ids=name_of)
@pytest.mark.parametrize(
    ("count", "width"),
    [(0, 3), (1, 1), (5, 0), (255, 16), (256, 15), (257, 17), (513, 40), (100, 130)],
)
def test_bits_are_those_of_the_definition(count: int, width: int, dtype: torch.dtype) -> None:
    before, rows = arguments(count, width, dtype)
    wanted = expected(before, rows)
    op(before, rows)
    assert_same_bits(before.tril(), wanted, "gram")


def test_the_order_shows_in_these_examples() -> None:
    before, rows = arguments(513, 40)
    assert not torch.equal(expected(before, rows), expected(before, rows.flip(0)))


def test_bits_do_not_depend_on_threads() -> None:
    before, rows = arguments(1000, 200)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            result = before.clone()
            op(result, rows)
            results.append(result)
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_rows_may_lie_apart() -> None:
    before, rows = arguments(300, 20)
    wide = torch.full((300, 50), torch.nan)
    wide[:, 7:27] = rows
    wanted = expected(before, rows)
    op(before, wide[:, 7:27])
    assert_same_bits(before.tril(), wanted)


def batch_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    *batch, count, width = shape
    pairs = [arguments(count + i, width, dtype) for i in range(batch[0])]
    return torch.stack([p[0] for p in pairs]), torch.stack([p[1][:count] for p in pairs])


@pytest.mark.parametrize("shape", [(3, 300, 20), (70, 5, 33), (2, 600, 150), (0, 5, 3), (4, 0, 2)])
def test_each_matrix_of_a_batch_has_the_bits_it_has_alone(shape: tuple[int, ...]) -> None:
    before, rows = (
        batch_of(shape) if shape[0] else (torch.empty(0, 3, 3).double(), torch.empty(shape))
    )
    results = []
    for count in (1, 3):
        with threads(count):
            results.append(before.clone())
            op(results[-1], rows)
    for i in range(shape[0]):
        op(before[i], rows[i])
    for result in results:
        assert_same_bits(result.tril(), before.tril())


@pytest.mark.parametrize("dtype", NARROW, ids=name_of)
def test_columns_may_be_the_neighbours(dtype: torch.dtype) -> None:
    """As those of the transpose of a wide matrix: the bits are those of rows."""
    before, rows = batch_of((3, 270, 37), dtype)
    by_column = rows.mT.contiguous().mT
    assert by_column.stride(-1) != 1
    wanted = before.clone()
    op(wanted, rows)
    op(before, by_column)
    assert_same_bits(before.tril(), wanted.tril())


def assert_to_rounding(op, device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Against torch's float64; rows and columns, apart from their neighbours in memory."""
    before, rows = batch_of(shape, dtype)
    wide = rows.double()
    wanted = before + wide.mT @ wide
    size = before.abs() + wide.abs().mT @ wide.abs()
    some = torch.full((shape[0], shape[1], shape[2] + 3), torch.nan, dtype=dtype)
    some[:, :, 1 : shape[2] + 1] = rows
    for given in (rows, rows.mT.contiguous().mT, some[:, :, 1 : shape[2] + 1]):
        results = []
        for _ in range(2):
            on_device = torch.empty_strided(given.shape, given.stride(), dtype=dtype, device=device)
            results.append(before.to(device, copy=True))
            op(results[-1], on_device.copy_(given))
        assert_same_bits(results[0].tril(), results[1].tril(), "from run to run")
        error = ((results[0].cpu() - wanted).abs() / size).tril()
        assert error.max() <= 2.0**-52 * (4 + shape[1] ** 0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NARROW, ids=name_of)
@pytest.mark.parametrize("shape", [(1, 20000, 130), (40, 511, 128), (1, 5000, 768), (300, 16, 16)])
def test_on_a_gpu_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_to_rounding(op, "cuda", shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 40, 70), (1, 300, 4)])
def test_the_cuda_op_on_the_host(on_simt: Any, shape: tuple[int, ...]) -> None:
    launched = on_simt.launches()
    assert_to_rounding(op, "cpu", shape, torch.float32)
    assert on_simt.launches() > launched


def test_what_is_not_finite_stays_so() -> None:
    before, rows = arguments(300, 20)
    rows[270, 18] = torch.inf
    rows[3, 1] = torch.nan
    op(before, rows)
    assert before[1, 1].isnan()
    assert before[18, 18].isinf()
    assert before[17, 5].isfinite()


def test_opcheck() -> None:
    opcheck(op.default, arguments(100, 8))
    opcheck(op.default, batch_of((3, 50, 8)))


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t.float(), "gram must be a dense float64 tensor, got float32 with shape"),
        (0, lambda t: t[:5], "gram must be square, got float64 with shape .5, "),
        (0, lambda t: t.T, "gram must be contiguous, got float64 with .* and strides .1, "),
        (0, lambda t: t[0], "gram must have 2 or 3 dimensions, got float64 with shape"),
        (
            1,
            lambda t: t.double(),
            "rows must be a dense float32, bfloat16 or float16 tensor, got float64",
        ),
        (
            1,
            lambda t: t.long(),
            "rows must be a dense float32, bfloat16 or float16 tensor, got int64",
        ),
        (1, lambda t: t[0], "rows must have as many dimensions as gram, got float32 with"),
        (1, lambda t: t[:, :3], "rows must be as wide as gram, got float32 with"),
        (1, lambda t: t.repeat(2, 2)[::2, ::2], "rows must have neighbouring elements in memory"),
    ],
)
def test_refused_with_nothing_changed(position: int, change, message: str) -> None:
    refuses(position, change, message, arguments(100, 8))


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t[:2], "rows must have as many matrices as gram, got float32 with"),
        (0, lambda t: t[0], "rows must have as many dimensions as gram, got float32 with"),
        (0, lambda t: t[None], "gram must have 2 or 3 dimensions, got float64 with shape .1, "),
        (1, lambda t: t[:, :, :3], "rows must be as wide as gram, got float32 with"),
    ],
)
def test_a_batch_refused_with_nothing_changed(position: int, change, message: str) -> None:
    refuses(position, change, message, batch_of((3, 20, 8)))


def refuses(position: int, change, message: str, given: tuple[Tensor, Tensor]) -> None:
    given = list(given)
    given[position] = change(given[position])
    before = given[0].clone()
    with pytest.raises(RuntimeError, match=f"gram_: {message}"):
        op(*given)
    assert_same_bits(given[0], before, "gram")
