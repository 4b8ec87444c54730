"""The global norm: its bits, its accuracy, what overflows and what does not, and NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fusedstep
from tests.reference.norm import total_norm
from tests.support.tensors import (
    DTYPES,
    assert_same_bits,
    bounded,
    in_memory_order,
    make_params,
    name_of,
    set_grads,
    threads,
)

NORM_TYPES = (2.0, 1.0, math.inf)
SIZES = (0, 1, 2, 255, 256, 257, 2047, 2048, 2049, 32767, 32768, 32769, 100_000)


def randn(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(dtype) for n in sizes]


def assert_norm_of_reference(tensors: list[Tensor], norm_type: float, scale: float = 1.0) -> None:
    expected = total_norm([in_memory_order(t) for t in tensors], norm_type, scale)
    grad_scale = None if scale == 1 else torch.tensor(scale, device=tensors[0].device)
    actual = torch.ops.fusedstep.total_norm(tensors, norm_type, grad_scale)
    assert_same_bits(actual.cpu(), torch.tensor(expected, dtype=torch.float64), "total_norm")
    if scale == 1:
        with np.errstate(over="ignore"):
            published = torch.tensor(np.float32(expected))
        actual = fusedstep.get_total_norm(tensors, norm_type)
        assert_same_bits(actual.cpu(), published, "get_total_norm")


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_bits_of_one_tensor(size: int, norm_type: float, device: torch.device) -> None:
    assert_norm_of_reference([randn(size)[0].to(device)], norm_type)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bits_of_every_dtype(dtype: torch.dtype, norm_type: float, device: torch.device) -> None:
    tensors = [t.to(device) for t in randn(5, 0, 70_000, 300, dtype=dtype)]
    assert_norm_of_reference(tensors, norm_type)
    assert_norm_of_reference(tensors, norm_type, 1024.0)
    assert_norm_of_reference(tensors, norm_type, 3.0)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_bits_of_mixed_dtypes_in_the_order_listed(norm_type: float, device: torch.device) -> None:
    tensors = [t.to(device, DTYPES[i % 4]) for i, t in enumerate(randn(*SIZES, 40_000, 3, 9))]
    assert_norm_of_reference(tensors, norm_type)
    assert_norm_of_reference(tensors[::-1], norm_type)


def test_bits_of_more_chunks_than_lanes(device: torch.device) -> None:
    assert_norm_of_reference([t.to(device) for t in randn(*range(300), 70_000, 2)], 2.0)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_number_of_threads_changes_no_bit(count: int, norm_type: float) -> None:
    tensors = randn(100_000, 1, 33_000, 32_768, 7)
    with threads(count):
        assert_norm_of_reference(tensors, norm_type)


@bounded
@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
    norm_type=st.sampled_from(NORM_TYPES),
    exponent=st.integers(-40, 38),
    seed=st.integers(0, 1000),
)
def test_bits_of_any_list(
    sizes: list[int], dtypes: list[torch.dtype], norm_type: float, exponent: int, seed: int
) -> None:
    tensors = [
        (t * 10.0**exponent).to(d) for t, d in zip(randn(*sizes, seed=seed), dtypes, strict=False)
    ]
    assert_norm_of_reference(tensors, norm_type)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_is_close_to_the_norm_in_float64(dtype: torch.dtype, norm_type: float) -> None:
    tensors = randn(200_000, 1000, 1, dtype=dtype)
    truth = torch.linalg.vector_norm(torch.cat(tensors).double(), norm_type)
    norm = torch.ops.fusedstep.total_norm(tensors, norm_type)
    rtol = 1e-13 if dtype == torch.float64 else 2e-7
    torch.testing.assert_close(norm, truth, rtol=rtol, atol=0)
    assert fusedstep.get_total_norm(tensors, norm_type).dtype == torch.float32


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_is_close_to_torch(norm_type: float) -> None:
    tensors = randn(20_000, 1000, 1)
    ours = fusedstep.get_total_norm(tensors, norm_type)
    theirs = torch.nn.utils.get_total_norm(tensors, norm_type)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("size", [1, 1000, 40_000])
def test_finite_gradients_whose_sum_overflows_have_their_finite_norm(
    size: int, norm_type: float, device: torch.device
) -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.full((size,), largest, device=device)
    x[0] = 1.0
    x[-1] = -largest / 3
    truth = torch.linalg.vector_norm(x.double(), norm_type)
    norm = torch.ops.fusedstep.total_norm([x], norm_type)
    torch.testing.assert_close(norm, truth, rtol=1e-6, atol=0)
    assert_norm_of_reference([x], norm_type)


def test_two_norm_at_the_edge_of_float32_is_published_where_float32_holds_it() -> None:
    x = torch.tensor([3e38, 1e38])
    assert float(fusedstep.get_total_norm([x])) == pytest.approx(math.hypot(3e38, 1e38), rel=1e-6)
    x = torch.tensor([3e38, 3e38])
    assert float(fusedstep.get_total_norm([x])) == math.inf


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("at", [0, 255, 300, 32_768, 39_999])
def test_nan_and_infinity_are_seen_wherever_they_are(
    at: int, dtype: torch.dtype, norm_type: float, device: torch.device
) -> None:
    for value in (math.nan, math.inf, -math.inf):
        tensors = [t.to(device) for t in randn(1000, 40_000, 3, dtype=dtype)]
        tensors[1][at] = value
        norm = float(fusedstep.get_total_norm(tensors, norm_type))
        assert math.isnan(norm) if math.isnan(value) else norm == math.inf
        assert_norm_of_reference(tensors, norm_type)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_nothing_and_zeros_have_norm_zero(norm_type: float) -> None:
    for tensors in ([], [torch.zeros(0)], [torch.zeros(3, 0), torch.zeros(5)], torch.zeros(4)):
        norm = fusedstep.get_total_norm(tensors, norm_type)
        assert_same_bits(norm, torch.tensor(0.0), "the norm of nothing")


@bounded
@given(present=st.lists(st.booleans(), min_size=8, max_size=8).filter(any), seed=st.integers(0, 99))
def test_missing_gradients_do_not_count(present: list[bool], seed: int) -> None:
    params = make_params((3, 3), (40_000,), (), (0,), (700,), (5,), (256, 3), (33_000,))
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    set_grads(params, seed=seed)
    optimizer.step()
    for param, has_grad in zip(params, present, strict=True):
        param.grad = param.grad if has_grad else None
    optimizer.step()
    expected = fusedstep.get_total_norm([p.grad for p in params if p.grad is not None])
    assert_same_bits(optimizer.grad_norm, expected, "grad_norm")
    assert_same_bits(fusedstep.clip_grad_norm_(params, 1.0), expected, "clip_grad_norm_")


def test_error_if_nonfinite() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(RuntimeError, match="must be finite where error_if_nonfinite=True, got"):
            fusedstep.get_total_norm([torch.tensor([1.0, value])], error_if_nonfinite=True)
    fusedstep.get_total_norm([torch.tensor([3e38, 1.0])], error_if_nonfinite=True)
