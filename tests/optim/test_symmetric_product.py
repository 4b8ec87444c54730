"""The op symmetric_product: exact sums bit for bit, rounded ones against float64, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from tests.support.newton_schulz import distance
from tests.support.tensors import assert_same_bits, threads

product = torch.ops.fusedstep.symmetric_product.default
# Tiles that are full and not, odd widths, several blocks of the width, and so many rows that a
# block is narrower.
SHAPES = [(1, 1), (3, 16), (16, 5), (17, 32), (31, 33), (64, 64), (100, 257), (48, 700), (2050, 70)]
shapes = pytest.mark.parametrize("shape", [*SHAPES, (3, 20, 40), (5, 64, 31)], ids=str)


def integers(*shape: int, seed: int = 0) -> Tensor:
    """From -2 to 2: sums of their products are exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).bfloat16()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


@shapes
def test_exact_sums_are_rounded_once(shape: tuple[int, ...]) -> None:
    A = integers(*shape)
    gram = A.double() @ A.double().mT
    assert_same_bits(product(A, A, None, 1.0, 1.0), gram.bfloat16())
    C = integers(*gram.shape, seed=1)
    C = C + C.mT
    expected = 3 * C.double() - 0.5 * gram
    assert_same_bits(product(A, A, C, 3.0, -0.5), expected.bfloat16())


def test_of_two_matrices_that_commute() -> None:
    A = 3 * torch.eye(40) + torch.ones(40, 40)
    B = 5 * torch.eye(40) - 2 * torch.ones(40, 40)
    expected = (A @ B).bfloat16()
    assert_same_bits(product(A.bfloat16(), B.bfloat16(), None, 1.0, 1.0), expected)


@shapes
def test_is_as_accurate_as_torchs(shape: tuple[int, ...]) -> None:
    A = normal(*shape)
    expected = A.double() @ A.double().mT
    actual = product(A, A, None, 1.0, 1.0)
    assert_same_bits(actual, actual.mT.contiguous())
    assert distance(actual, expected) <= 1.1 * distance(A @ A.mT, expected) + 1e-6


@shapes
def test_batches_and_threads_change_no_bit(shape: tuple[int, ...]) -> None:
    A = normal(*shape)
    with threads(1):
        expected = product(A, A, None, 1.0, 1.0)
    with threads(3):
        assert_same_bits(product(A, A, None, 1.0, 1.0), expected)
    for a, one in zip(
        A.view(-1, *shape[-2:]), expected.view(-1, *expected.shape[-2:]), strict=True
    ):
        assert_same_bits(product(a, a, None, 1.0, 1.0), one)


def test_what_is_not_finite_stays_in_its_rows_and_columns() -> None:
    A = integers(40, 33)
    expected = product(A, A, None, 1.0, 1.0)
    A[20, 7] = torch.nan
    actual = product(A, A, None, 1.0, 1.0)
    assert actual[20].isnan().all()
    assert actual[:, 20].isnan().all()
    rest = [i for i in range(40) if i != 20]
    assert_same_bits(actual[rest][:, rest], expected[rest][:, rest])


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (2, 0, 5)], ids=str)
def test_of_nothing_is_nothing(shape: tuple[int, ...]) -> None:
    none = torch.zeros(shape, dtype=torch.bfloat16)
    assert product(none, none, None, 1.0, 1.0).shape == (*shape[:-1], shape[-2])


def test_opcheck() -> None:
    A = normal(2, 20, 40)
    opcheck(product, (A, A, None, 1.0, 1.0))
    C = product(A, A, None, 1.0, 1.0)
    opcheck(product, (C, C, C, 2.0, 0.5))


REFUSED = {
    "float32": (lambda A, B, C: (A.float(), B, C), "A must be a dense bfloat16 tensor"),
    "transposed": (lambda A, B, C: (A.mT.contiguous().mT, B, C), "A must be contiguous"),
    "vector": (lambda A, B, C: (A[0], B, C), "A must have 2 or 3 dimensions"),
    "no columns": (lambda A, B, C: (A[:, :0].contiguous(), B, C), "A must have columns"),
    "another shape": (lambda A, B, C: (A, B[1:], C), "B must have the shape of A"),
    "another dtype": (lambda A, B, C: (A, B.half(), C), "B must be a dense bfloat16 tensor"),
    "C too large": (lambda A, B, C: (A, B, A), "C must have the shape of A Bᵀ"),
    "C float32": (lambda A, B, C: (A, B, C.float()), "C must be a dense bfloat16 tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    change, message = REFUSED[name]
    A = normal(4, 6)
    arguments = change(A, A.clone(), product(A, A, None, 1.0, 1.0))
    with pytest.raises(RuntimeError, match=f"symmetric_product: {message}, got"):
        product(*arguments, 1.0, 1.0)
