"""The op for Gram matrices: its bits, with fused multiply-adds or without; what it refuses."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same_bits, name_of, threads
from torch import Tensor
from torch.library import opcheck

import fusedstep  # noqa: F401  # registers the op
from fusedstep.reference.gram import gram

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


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t.float(), "gram must be a contiguous square of float64"),
        (0, lambda t: t[:5], "gram must be a contiguous square of float64"),
        (0, lambda t: t.T, "gram must be a contiguous square of float64"),
        (1, lambda t: t.double(), "rows must be narrower than float64"),
        (1, lambda t: t.long(), "rows must be a dense float32, float64, bfloat16 or float16"),
        (1, lambda t: t[0], "rows must have two dimensions, got 1"),
        (1, lambda t: t[:, :3], "rows must be as wide as gram, got 3"),
        (1, lambda t: t.T.contiguous().T, "rows must have neighbouring elements in memory"),
    ],
)
def test_refused_with_nothing_changed(position: int, change, message: str) -> None:
    given = list(arguments(100, 8))
    given[position] = change(given[position])
    before = given[0].clone()
    with pytest.raises(RuntimeError, match=f"gram_: {message}"):
        op(*given)
    assert_same_bits(given[0], before, "gram")
