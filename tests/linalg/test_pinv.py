"""pinv means what torch.linalg.pinv means: tolerances, layouts, batches; and its information."""

from __future__ import annotations

import pytest
import torch

from fusedstep import pinv
from tests.support.matrices import conditioned, with_singular_values
from tests.support.tensors import LAYOUTS, laid_out, name_of

DRIVERS = ("auto", "eigh", "qr_svd", "jacobi")
F64 = torch.float64
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
rows = pytest.mark.parametrize("rows", [20, 40])  # one kernel's work, and beyond it


def assert_close(actual, expected) -> None:
    tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@both
@pytest.mark.parametrize(
    "tolerances",
    [
        {},
        {"rtol": 0.3},
        {"atol": 0.3},
        {"atol": 0.3, "rtol": 0.01},
        {"atol": 0.0},
        {"atol": 0.01, "rtol": 0.3},
        {"rtol": 0.0},
        {"rtol": 2.0},
        {"rtol": torch.tensor([0.3, 0.01, 0.0])},
        {"atol": torch.tensor([0.3, 0.0, 0.6])},
        {"atol": torch.tensor([[0.3], [0.0]]), "rtol": torch.tensor(0.05)},
        {"rtol": torch.tensor([0.3, 0.01]).view(2, 1, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (40, 4), (4, 40)], ids=str)
def test_tolerances_mean_what_they_mean_in_torch(dtype, tolerances, shape) -> None:
    sigma = torch.tensor([1.0, 0.5, 0.1, 0.02], dtype=F64)
    batch = [with_singular_values(*shape, sigma, seed) for seed in range(6)]
    A = torch.stack(batch).view(2, 3, *shape).to(dtype)
    if shape == (5, 5):  # a fifth singular value, or rtol=0 would ask for noise
        A = A + 0.3 * torch.eye(5, dtype=dtype)
    expected = torch.linalg.pinv(A, **tolerances)
    for driver in DRIVERS:
        actual = pinv(A, driver=driver, **tolerances)
        assert actual.shape == expected.shape
        if not (driver == "eigh" and dtype == F64):
            assert_close(actual, expected)
    if shape != (5, 5):
        assert_close(pinv(A, synchronize=False, **tolerances), expected)


@both
@pytest.mark.parametrize("driver", [*DRIVERS, "cholesky"])
def test_a_singular_value_equal_to_the_tolerance_counts_as_zero(dtype, driver) -> None:
    A = torch.diag(torch.tensor([1.0, 0.5], dtype=dtype))
    kept, info = pinv(A, rtol=0.4, driver=driver, return_info=True)
    assert torch.equal(kept, torch.diag(torch.tensor([1.0, 2.0], dtype=dtype)))
    assert (info.rank, info.code) == (2, 0)
    dropped, info = pinv(A, rtol=0.5, driver=driver, return_info=True)
    if driver == "cholesky":  # it cannot truncate and says so
        assert info.code == 2
        assert dropped.isnan().all()
    else:
        assert torch.equal(dropped, torch.diag(torch.tensor([1.0, 0.0], dtype=dtype)))
        assert (info.rank, info.code) == (1, 0)


@both
def test_hermitian_reads_the_lower_triangle_alone(dtype) -> None:
    values = torch.tensor([2.0, -1.0, 0.5, -1e-3, 0.0], dtype=F64)
    Q = torch.linalg.qr(torch.randn(3, 5, 5, dtype=F64))[0]
    A = ((Q * values) @ Q.mT).to(dtype)
    torn = A.tril() + torch.full_like(A, float("nan")).triu(1)
    expected = torch.linalg.pinv(A.double(), rtol=1e-2, hermitian=True).to(dtype)
    for rtol, rank in ((1e-2, 3), (1e-5, 4)):
        actual, info = pinv(torn, rtol=rtol, hermitian=True, return_info=True)
        assert info.rank.tolist() == [rank] * 3
        assert not actual.isnan().any()
    assert_close(pinv(torn, rtol=1e-2, hermitian=True, driver="eigh"), expected)


@both
@pytest.mark.parametrize(
    "shape", [(0, 3), (3, 0), (0, 0), (0, 4, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0)], ids=str
)
def test_empty_matrices_and_batches(dtype, shape) -> None:
    A = torch.empty(shape, dtype=dtype, requires_grad=True)
    actual, info = pinv(A, return_info=True)
    assert actual.shape == torch.linalg.pinv(A).shape
    assert info.rank.shape == info.code.shape == info.rcond.shape == shape[:-2]
    assert not info.rank.any()
    actual.sum().backward()
    assert A.grad.shape == shape


@both
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 3, 1, 6, 4), (3, 33, 65)], ids=str)
@pytest.mark.parametrize("driver", [*DRIVERS, "cholesky"])
def test_every_shape_by_every_driver(dtype, shape, driver) -> None:
    A = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    actual, info = pinv(A, driver=driver, return_info=True)
    assert_close(actual, torch.linalg.pinv(A))
    assert (info.rank == min(shape[-2:])).all()
    assert not info.code.any()


@rows
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_bits(layout, rows) -> None:
    A = torch.randn(3, rows, 4)
    assert torch.equal(pinv(laid_out(A, layout)), pinv(A))
    shared = A[:1].expand(3, rows, 4)
    assert torch.equal(pinv(shared), pinv(shared.clone()))


@rows
def test_a_wide_matrix_is_a_tall_one_transposed(rows) -> None:
    A = torch.randn(4, rows, 5)
    torch.testing.assert_close(pinv(A.mT), pinv(A).mT, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_half_precision_is_computed_wider_and_rounded_once(dtype) -> None:
    A = torch.randn(2, 300, 7).to(dtype)
    actual, info = pinv(A, return_info=True)
    assert torch.equal(actual, pinv(A.float()).to(dtype))
    assert info.rank.tolist() == [7, 7]


@pytest.mark.parametrize("rank", [12, 5, 1])
@both
@rows
def test_information_bounds_the_condition(dtype, rank, rows) -> None:
    """A lower bound where full rank was proved, at most sqrt(k) below; else the ratio."""
    A = torch.stack([conditioned(rows, 12, 10.0, rank, seed) for seed in range(4)]).to(dtype)
    _, info = pinv(A, return_info=True)
    assert info.rank.tolist() == [rank] * 4
    sigma = torch.linalg.svdvals(A.double())
    ratio = sigma[:, rank - 1] / sigma[:, 0]
    assert (info.rcond <= ratio * (1 + 1e-6)).all()
    assert (info.rcond >= ratio / 12**0.5).all()


def test_a_zero_matrix_has_a_zero_inverse() -> None:
    for driver in DRIVERS:
        actual, info = pinv(torch.zeros(2, 5, 3), driver=driver, return_info=True)
        assert torch.equal(actual, torch.zeros(2, 3, 5))
        assert (info.rank.tolist(), info.rcond.tolist()) == ([0, 0], [0.0, 0.0])


@rows
def test_no_element_is_too_large_or_too_small_to_be_squared(rows) -> None:
    for scale in (1e250, 1e-250):
        A = scale * conditioned(rows, 4, 100.0)
        truth = conditioned(rows, 4, 100.0).pinverse() / scale
        for driver in ("auto", "qr_svd", "jacobi", "eigh"):
            torch.testing.assert_close(pinv(A, driver=driver), truth, rtol=1e-9, atol=0)
    tiny = torch.full((1, 1), 1e-38)
    assert pinv(tiny).item() == pytest.approx(1e38, rel=1e-6)


@rows
def test_the_same_bits_at_every_run(rows) -> None:
    A = torch.randn(20, rows, 16)
    assert torch.equal(pinv(A), pinv(A))
