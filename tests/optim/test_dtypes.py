"""Parameters and gradients in all combinations of dtypes, their state, and every conversion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import fusedstep
from tests.reference.storage import round_to
from tests.support.op_arguments import arrays_of, values_of
from tests.support.shadow import Shadow
from tests.support.tensors import (
    DTYPES,
    assert_same_bits,
    copies,
    in_memory_order,
    make_params,
    name_of,
    set_grads,
)

SHAPES = [(7, 3), (), (0,), (33_000,), (1025,)]
HALVES = (torch.bfloat16, torch.float16)


def every_half(dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of all 65536 values of a 16-bit dtype."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    return bits.view(dtype).to(device)


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_every_combination_equals_the_reference(
    dtype: torch.dtype, grad_dtype: torch.dtype, device: torch.device
) -> None:
    params = make_params(*SHAPES, dtype=dtype, device=device)
    shadow = Shadow(fusedstep.AdamW(params, lr=0.1, max_norm=1.0, amsgrad=True))
    for step in range(3):
        set_grads(params, seed=step, dtype=grad_dtype)
        shadow.step()


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_every_half_survives_a_clip_by_one(dtype: torch.dtype, device: torch.device) -> None:
    values = every_half(dtype, device)
    norm = torch.tensor(0.5, dtype=torch.float64, device=device)
    # Nothing is written where the factor is 1, but is where it becomes 1 as a float32.
    for max_norm in (1.0, (0.5 + 1e-6) * (1 - 1e-9)):
        clipped = values.clone()
        torch.ops.fusedstep.clip_by_norm_([clipped], norm, max_norm)
        assert_same_bits(clipped, values, "a value times 1")


@pytest.mark.parametrize("coefficient", [0.3, 1 / 3, 0.999, 2**-9, 1e-7])
@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_every_half_times_a_number_is_rounded_to_nearest(
    dtype: torch.dtype, coefficient: float, device: torch.device
) -> None:
    values = every_half(dtype, device)
    clipped = values.clone()
    norm = torch.tensor(1.0 - 1e-6, dtype=torch.float64, device=device)
    torch.ops.fusedstep.clip_by_norm_([clipped], norm, coefficient)
    factor = np.float32(coefficient / (float(norm) + 1e-6))
    with np.errstate(invalid="ignore"):
        products = in_memory_order(values) * factor
    expected = torch.from_numpy(round_to(products, name_of(dtype))).to(dtype)
    assert_same_bits(clipped.cpu(), expected, f"times {factor}")
    assert_same_bits(expected, (values.cpu().float() * float(factor)).to(dtype), "torch's rounding")


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_float32_is_rounded_to_a_half_as_torch_does(
    dtype: torch.dtype, device: torch.device
) -> None:
    high = torch.arange(2**16, dtype=torch.int64) << 16
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    targets = (high[:, None] | low).flatten().to(torch.int32).view(torch.float32)
    targets = targets.to(device)
    # With a gradient and a second moment of 0, eps = lr = 1 and beta1 = 1/2, the first step takes
    # a parameter from 0 to 0 - 2 * (m / 2).
    param = torch.zeros_like(targets, dtype=dtype)
    grad, exp_avg, exp_avg_sq = torch.zeros_like(targets), -targets, torch.zeros_like(targets)
    arrays = arrays_of([exp_avg, exp_avg_sq, torch.zeros((), device=device)])
    values = values_of({"lr": 1.0, "beta1": 0.5, "beta2": 0.5, "eps": 1.0, "weight_decay": 0.0})
    torch.ops.fusedstep.step_("adam", [param], [grad], *arrays, [1], values, 0, [], [])
    assert_same_bits(param, (0 - 2 * (-targets / 2)).to(dtype), "rounded")


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_half_precision_parameters_stay_close_to_float32_ones(dtype: torch.dtype) -> None:
    halves = make_params((500,), dtype=dtype)
    floats = [p.detach().float().requires_grad_() for p in halves]
    optimizers = [fusedstep.AdamW(p, lr=0.01, weight_decay=0.0) for p in (halves, floats)]
    for step in range(20):
        set_grads(floats, seed=step)
        set_grads(halves, seed=step, dtype=torch.float32)
        for optimizer in optimizers:
            optimizer.step()
    moments = [o.state[p[0]]["exp_avg"] for o, p in zip(optimizers, (halves, floats), strict=True)]
    assert_same_bits(*moments, "exp_avg")  # it depends on the gradients alone
    step_of_dtype = torch.finfo(dtype).eps * 4
    torch.testing.assert_close(halves[0].float(), floats[0], rtol=step_of_dtype, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_dtypes_that_torch_fused_takes_too_are_close_to_it(dtype: torch.dtype) -> None:
    ours = make_params((300,), (4, 5), dtype=dtype)
    theirs = copies(ours)
    optimizers = fusedstep.AdamW(ours, lr=0.01), torch.optim.AdamW(theirs, lr=0.01, fused=True)
    for step in range(3):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_grads(params, seed=step)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        eps = torch.finfo(dtype).eps  # torch keeps the moments in the parameter's dtype
        torch.testing.assert_close(a, b, rtol=8 * eps, atol=0.01 if eps > 1e-4 else 1e-6)
