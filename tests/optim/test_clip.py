"""clip_grad_norm_ against torch's, and bit for bit against the NumPy reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fusedstep
from tests.reference.clip import clip_coefficient
from tests.reference.norm import total_norm
from tests.reference.storage import round_to
from tests.support.tensors import (
    DTYPES,
    assert_same_bits,
    bounded,
    copies,
    in_memory_order,
    make_params,
    name_of,
    set_grads,
    threads,
)

NORM_TYPES = (2.0, 1.0, math.inf)
SHAPES = [(70_000,), (), (3, 5), (0,), (257,)]


def assert_clips_like_the_reference(
    params: list[Tensor], max_norm: float, norm_type: float
) -> None:
    grads = [in_memory_order(p.grad) for p in params if p.grad is not None]
    norm = total_norm(grads, norm_type)
    coefficient = clip_coefficient(norm, max_norm)
    with np.errstate(all="ignore"):
        expected = [grad * grad.dtype.type(coefficient) for grad in grads]
        published = torch.tensor(np.float32(norm))
    actual = fusedstep.clip_grad_norm_(params, max_norm, norm_type)
    assert_same_bits(actual.cpu(), published, "norm")
    for i, param in enumerate(p for p in params if p.grad is not None):
        rounded = round_to(expected[i], name_of(param.grad.dtype))
        actual = torch.from_numpy(in_memory_order(param.grad))
        assert_same_bits(actual, torch.from_numpy(rounded), f"grads[{i}]")


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 1e9, math.inf])
def test_bits_are_those_of_the_reference(
    max_norm: float, norm_type: float, device: torch.device
) -> None:
    params = make_params(*SHAPES, device=device)
    set_grads(params)
    params[2].grad = None
    assert_clips_like_the_reference(params, max_norm, norm_type)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bits_of_every_dtype(dtype: torch.dtype, device: torch.device) -> None:
    params = make_params(*SHAPES, dtype=dtype, device=device)
    set_grads(params)
    assert_clips_like_the_reference(params, 1.0, 2.0)
    for i, param in enumerate(params):
        set_grads([param], dtype=DTYPES[i % 4])
    assert_clips_like_the_reference(params, 1.0, 2.0)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_number_of_threads_changes_no_bit(count: int) -> None:
    params = make_params(*SHAPES, (40_000,))
    set_grads(params)
    with threads(count):
        assert_clips_like_the_reference(params, 1.0, 2.0)


@bounded
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
    max_norm=st.floats(0, 1e30),
    norm_type=st.sampled_from(NORM_TYPES),
    scale=st.sampled_from([1e-30, 1e-5, 1.0, 1e5, 1e30]),
)
def test_bits_of_any_list(
    sizes: list[int], dtypes: list[torch.dtype], max_norm: float, norm_type: float, scale: float
) -> None:
    params = make_params(*[(size,) for size in sizes])
    for i, param in enumerate(params):
        set_grads([param], seed=i, dtype=dtypes[i], scale=scale)
    assert_clips_like_the_reference(params, max_norm, norm_type)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e9])
def test_is_close_to_torch(max_norm: float, norm_type: float) -> None:
    ours = make_params((5000,), (), (3, 5))
    set_grads(ours)
    theirs = copies(ours)
    norms = [
        clip(params, max_norm, norm_type)
        for clip, params in (
            (fusedstep.clip_grad_norm_, ours),
            (torch.nn.utils.clip_grad_norm_, theirs),
        )
    ]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_gradients_become_what_torch_makes_of_them(value: float) -> None:
    ours = make_params((50,), (3,))
    set_grads(ours)
    ours[0].grad[7] = value
    theirs = copies(ours)
    fusedstep.clip_grad_norm_(ours, 1.0)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p.grad.isnan(), q.grad.isnan())
        assert torch.equal(p.grad.nan_to_num(), q.grad.nan_to_num())


def test_takes_what_torch_takes() -> None:
    (param,) = make_params((5,))
    for given_as in (param, [param], (param,), iter([param])):
        set_grads([param])
        norm = fusedstep.clip_grad_norm_(given_as, torch.tensor(0.5), "inf")
        assert float(norm) == pytest.approx(
            float(param.grad.abs().max()) * float(norm) / 0.5, rel=1e-5
        )
    norm = fusedstep.clip_grad_norm_([], 1.0)
    assert_same_bits(norm, torch.tensor(0.0), "the norm of nothing")
    param.grad = None
    assert_same_bits(fusedstep.clip_grad_norm_(param, 1.0), torch.tensor(0.0), "no gradient")


def test_norm_inside_the_step_is_that_of_the_clip() -> None:
    params = make_params(*SHAPES)
    set_grads(params)
    optimizer = fusedstep.AdamW(params, max_norm=0.5)
    optimizer.step()
    assert_same_bits(optimizer.grad_norm, fusedstep.clip_grad_norm_(params, 0.5), "norm")


def test_clip_then_step_is_close_to_the_step_that_clips() -> None:
    apart, together = (make_params(*SHAPES) for _ in range(2))
    optimizers = fusedstep.AdamW(apart), fusedstep.AdamW(together, max_norm=0.1)
    for step in range(3):
        set_grads(apart, seed=step)
        set_grads(together, seed=step)
        fusedstep.clip_grad_norm_(apart, 0.1)
        for optimizer in optimizers:
            optimizer.step()
    # Not the same bits: a gradient that is written is rounded once more.
    torch.testing.assert_close(apart, together)
