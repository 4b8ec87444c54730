"""The op that sums rows by id: its bits, whatever threads, dtypes and layouts; what it refuses."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import fusedstep  # noqa: F401  # registers the op
from tests.reference.segment_sum import segment_sum
from tests.support.tensors import DTYPES, assert_same_bits, name_of, threads

op = torch.ops.fusedstep.segment_sum_


def arguments(
    count: int,
    width: int,
    num_ids: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums, rows of very different sizes, and the order and ids of a sort; small ids are many."""
    generator = torch.Generator().manual_seed(count + width)
    exponents = torch.randn(count, width, generator=generator) * (3 if dtype.itemsize == 2 else 20)
    rows = torch.randn(count, width, generator=generator) * exponents.exp2()
    tokens = torch.rand(count, generator=generator).square().mul(num_ids).long()
    ids, order = torch.sort(tokens, stable=True)
    sums = torch.randn(num_ids, width, generator=generator, dtype=torch.float64)
    return sums.to(device), rows.to(device, dtype), order.to(device), ids.to(device)


def expected(sums: Tensor, rows: Tensor, order: Tensor, ids: Tensor) -> Tensor:
    wide = rows.double()  # exact
    arrays = [t.cpu().numpy() for t in (sums, wide, order, ids)]
    return torch.from_numpy(segment_sum(*arrays))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    ("count", "width", "num_ids"),
    [(0, 5, 3), (1, 1, 1), (64, 3, 2), (65, 300, 2), (1000, 17, 1), (1000, 256, 5000), (700, 4, 9)],
)
def test_bits_are_those_of_the_definition(
    count: int, width: int, num_ids: int, dtype: torch.dtype, device: torch.device
) -> None:
    sums, *rest = arguments(count, width, num_ids, dtype, device)
    wanted = expected(sums, *rest)
    op(sums, *rest)
    assert_same_bits(sums, wanted, "sums")


def test_the_order_shows_in_these_examples() -> None:
    sums, rows, order, ids = arguments(1000, 17, 1)
    assert not torch.equal(
        expected(sums, rows, order, ids), expected(sums, rows, order.flip(0), ids)
    )


def test_bits_do_not_depend_on_threads(device: torch.device) -> None:
    sums, rows, order, ids = arguments(20_000, 40, 300, device=device)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            result = sums.clone()
            op(result, rows, order, ids)
            results.append(result)
    assert_same_bits(results[1], results[0], "two threads")
    assert_same_bits(results[2], results[0], "five threads")


def test_rows_may_lie_apart_and_be_shared(device: torch.device) -> None:
    sums, rows, order, ids = arguments(200, 12, 5, device=device)
    wide = torch.zeros(200, 50, device=device)
    wide[:, 3:15] = rows
    wanted = expected(sums, rows, order, ids)
    apart = sums.clone()
    op(apart, wide[:, 3:15], order, ids)
    assert_same_bits(apart, wanted, "rows apart")
    op(sums, rows[:1].expand(200, 12), order, ids)
    counts = torch.bincount(ids, minlength=5)
    start = arguments(200, 12, 5, device=device)[0]
    torch.testing.assert_close(sums, start + counts[:, None] * rows[0].double())


def test_rows_are_taken_as_often_as_the_order_names_them() -> None:
    sums = torch.zeros(3, 2, dtype=torch.float64)
    rows = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    op(sums, rows, torch.tensor([1, 1, 0]), torch.tensor([0, 2, 2]))
    assert sums.tolist() == [[10.0, 20.0], [0.0, 0.0], [11.0, 22.0]]


def test_opcheck(device: torch.device) -> None:
    opcheck(op.default, arguments(100, 8, 5, device=device))


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t.float(), "sums must be a dense float64 tensor, got float32"),
        (0, lambda t: t[:, ::2], "sums must be contiguous, got .* strides .., 2. on cpu"),
        (1, lambda t: t.long(), "rows must be a dense float32, float64, bfloat16 or float16"),
        (1, lambda t: t[0], "rows must have 2 dimensions, got float32 with shape"),
        (1, lambda t: t[:, :3], "rows must be as wide as sums, got float32 with shape .100, 3. "),
        (1, lambda t: t.T.contiguous().T, "rows must have neighbouring elements in memory"),
        (2, lambda t: t.int(), "order must be a dense int64 tensor, got int32"),
        (
            2,
            lambda t: t[:-1],
            "order must have as many elements as ids, got int64 with shape .99. ",
        ),
        (2, lambda t: t - 1, re.escape("order[") + r"\d+\] must be a row's number, got -1"),
        (2, lambda t: t + 1, re.escape("order[") + r"\d+\] must be a row's number, got 100"),
        (3, lambda t: t.double(), "ids must be a dense int64 tensor, got float64"),
        (3, lambda t: t - 1, re.escape("ids[0] must ascend from 0 or more") + ".* got -1"),
        (3, lambda t: t + 1, r"ids\[\d+\] must ascend .* less than the number of sums, got 5"),
        (3, lambda t: t.flip(0), r"ids\[\d+\] must ascend"),
    ],
)
def test_refused_with_nothing_changed(position: int, change, message: str) -> None:
    given = list(arguments(100, 8, 5))
    given[position] = change(given[position])
    before = given[0].clone()
    with pytest.raises(RuntimeError, match=f"segment_sum_: {message}"):
        op(*given)
    assert_same_bits(given[0], before, "sums")
