"""The orthogonalization: torch's numbers, those of exact arithmetic, the same in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz as torchs

from fusedstep.optim.muon import orthogonalize_
from tests.support.tensors import DTYPES, LAYOUTS, assert_same_bits, laid_out, make_params, name_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
# Several of one shape, tall, wide, square, odd, vectors and a single number; not in order.
SHAPES = [(8, 16), (64, 64), (16, 8), (8, 16), (33, 17), (1, 5), (5, 1), (64, 64), (1, 1), (8, 16)]


def matrices(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [param.detach() for param in make_params(*SHAPES, dtype=dtype)]


def orthogonal(of: list[Tensor], steps: int = 5, **options: int) -> list[Tensor]:
    """New matrices in place of `of`."""
    result = [torch.empty_like(matrix).copy_(matrix) for matrix in of]
    orthogonalize_(result, COEFFICIENTS, steps, EPS, **options)
    return result


def exact(matrix: Tensor, steps: int) -> Tensor:
    """The iteration of Jordan's post in float64, which knows no tall and wide."""
    a, b, c = COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """As far apart as `tolerance` says, in the Frobenius norm and relatively."""
    assert actual.shape == expected.shape
    assert (actual.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_is_torchs(dtype: torch.dtype, steps: int) -> None:
    of = matrices(dtype)
    for matrix, actual in zip(of, orthogonal(of, steps), strict=True):
        assert actual.dtype == dtype
        assert_near(actual, torchs(matrix.clone(), COEFFICIENTS, steps, EPS), 0.02)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_is_that_of_exact_arithmetic_but_for_bfloat16(steps: int, device: torch.device) -> None:
    of = [matrix.to(device) for matrix in matrices()]
    for matrix, actual in zip(of, orthogonal(of, steps), strict=True):
        assert_near(actual, exact(matrix, steps), 0.05)


def test_makes_well_conditioned_matrices_orthogonal_or_nearly_so() -> None:
    values = torch.linalg.svdvals(torch.stack(orthogonal([torch.eye(6) + 0.1 * torch.ones(6, 6)])))
    assert (values > 0.6).all()
    assert (values < 1.3).all()


def test_a_batch_is_its_matrices_one_by_one() -> None:
    of = matrices()
    alone = [orthogonal([matrix])[0] for matrix in of]
    for max_elements in (2**26, 300, 1):  # batches of any size, of a few matrices, of one each
        for i, actual in enumerate(orthogonal(of, max_elements=max_elements)):
            assert_near(actual, alone[i], 0.02)


def test_a_batch_is_of_one_shape_and_no_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    stack = torch.stack

    def counted(tensors: list[Tensor]) -> Tensor:
        result = stack(tensors)
        seen.append(tuple(result.shape))
        return result

    monkeypatch.setattr(torch, "stack", counted)
    orthogonal(matrices(), max_elements=256)
    assert seen[:3] == [(2, 8, 16), (1, 8, 16), (1, 64, 64)]
    assert sum(count for count, _, _ in seen) == len(SHAPES)
    seen.clear()
    orthogonal(matrices())
    assert len(seen) == len(set(SHAPES))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_may_be_laid_out_in_any_way(layout: str) -> None:
    of = matrices()
    expected = orthogonal(of)
    actual = [laid_out(matrix.clone(), layout) for matrix in of]
    orthogonalize_(actual, COEFFICIENTS, 5, EPS)
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)


def test_nothing_and_zeros_stay_what_they_are() -> None:
    of = [torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(3, 3), torch.zeros(0, 0)]
    for actual, matrix in zip(orthogonal(of), of, strict=True):
        assert_same_bits(actual, matrix)
    orthogonalize_([], COEFFICIENTS, 5, EPS)


def test_one_matrix_that_is_not_finite_spoils_no_other() -> None:
    of = matrices()
    expected = orthogonal(of)
    of[0][0, 0] = torch.nan
    actual = orthogonal(of)
    assert actual[0].isnan().all()
    for a, b in zip(actual[1:], expected[1:], strict=True):
        assert_near(a, b, 0.02)


def test_eps_is_the_smallest_norm_divided_by() -> None:
    (tiny,) = matrix = [torch.full((2, 2), 2.0**-30)]
    orthogonalize_(matrix, COEFFICIENTS, 0, 2.0**-20)
    assert_same_bits(tiny, torch.full((2, 2), 2.0**-10))
