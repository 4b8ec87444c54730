"""Gradients that are not finite, the three ways to treat them, and loss scales."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.shadow import Shadow
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

SHAPES = [(300,), (), (40_000,), (0,), (5, 5)]
BAD = (math.nan, math.inf, -math.inf)


def put_bad(params: list[Tensor], value: float) -> None:
    params[2].grad[33_333] = value


def snapshot(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of all parameters and state."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [*params, *(v for p in params for v in optimizer.state.get(p, {}).values())]
    return [t.detach().clone() for t in tensors]


def assert_unchanged(optimizer: torch.optim.Optimizer, before: list[Tensor]) -> None:
    for now, then in zip(snapshot(optimizer), before, strict=True):
        assert_same_bits(now, then, "what must stay")


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("value", BAD)
def test_propagate_does_as_torch(
    value: float, max_norm: float | None, device: torch.device
) -> None:
    params = make_params(*SHAPES, device=device)
    theirs = copies(params)
    shadow, reference = (
        Shadow(fusedstep.AdamW(params, max_norm=max_norm)),
        torch.optim.AdamW(theirs),
    )
    for step in range(3):
        for tensors in (params, theirs):
            set_grads(tensors, seed=step)
            if step == 1:
                put_bad(tensors, value)
        shadow.step()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        reference.step()
    for p, q in zip(params, theirs, strict=True):
        assert torch.equal(p.isnan(), q.isnan())
    whole = params[0].isnan().all()
    assert whole if max_norm is not None and math.isnan(value) else not whole


@pytest.mark.parametrize(
    "options", [{}, {"max_norm": 1.0}, {"max_norm": 1.0, "norm_type": math.inf}]
)
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("at", [0, 2])
def test_skip_leaves_everything_as_it_was(
    at: int, value: float, options: dict[str, Any], device: torch.device
) -> None:
    params = make_params(*SHAPES, device=device)
    shadow = Shadow(fusedstep.AdamW(params, nonfinite="skip", amsgrad=True, **options))
    for step in range(4):
        set_grads(params, seed=step)
        if step != at:
            shadow.step()
            continue
        put_bad(params, value)
        before = snapshot(shadow.optimizer)
        shadow.step()
        if step > 0:
            assert_unchanged(shadow.optimizer, before)
        assert not math.isfinite(float(shadow.optimizer.grad_norm))
    assert {float(s["step"]) for s in shadow.optimizer.state.values()} == {3.0}


@pytest.mark.parametrize("value", BAD)
def test_error_raises_and_leaves_everything_as_it_was(value: float, device: torch.device) -> None:
    params = make_params(*SHAPES, device=device)
    optimizer = fusedstep.AdamW(params, nonfinite="error")
    set_grads(params)
    optimizer.step()
    before = snapshot(optimizer)
    set_grads(params, seed=1)
    put_bad(params, value)
    with pytest.raises(RuntimeError, match="norm must be finite where nonfinite='error', got"):
        optimizer.step()
    assert_unchanged(optimizer, before)
    set_grads(params, seed=2)
    optimizer.step()
    assert {float(s["step"]) for s in optimizer.state.values()} == {2.0}


def test_norm_beyond_float32_counts_as_infinite(device: torch.device) -> None:
    params = make_params((2,), device=device)
    shadow = Shadow(fusedstep.AdamW(params, nonfinite="skip"))
    params[0].grad = torch.full((2,), 3e38, device=device)  # each finite, their norm 4.2e38
    shadow.step()
    assert float(shadow.optimizer.state[params[0]]["step"]) == 0
    params[0].grad = torch.full((2,), 2e38, device=device)
    shadow.step()
    assert float(shadow.optimizer.state[params[0]]["step"]) == 1


@pytest.mark.parametrize("scale", [65536.0, 1.0, 3.0, 2.0**-10])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_loss_scale_is_divided_out(
    max_norm: float | None, scale: float, device: torch.device
) -> None:
    params = make_params(*SHAPES, device=device)
    shadow = Shadow(fusedstep.AdamW(params, max_norm=max_norm))
    for step in range(3):
        set_grads(params, seed=step, scale=scale)
        shadow.optimizer.grad_scale = torch.tensor(scale, device=device)
        shadow.optimizer.found_inf = torch.tensor(0.0, device=device)
        shadow.step()


@pytest.mark.parametrize("scale", [None, 8.0])
@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}, {"nonfinite": "skip"}])
def test_found_inf_skips_also_without_a_scale(
    options: dict[str, Any], scale: float | None, device: torch.device
) -> None:
    params = make_params(*SHAPES, device=device)
    shadow = Shadow(fusedstep.AdamW(params, **options))
    for step, found in enumerate([0.0, 1.0, 0.0, 2.0]):
        set_grads(params, seed=step)
        shadow.optimizer.grad_scale = None if scale is None else torch.tensor(scale, device=device)
        shadow.optimizer.found_inf = torch.tensor(found, device=device)
        before = snapshot(shadow.optimizer)
        shadow.step()
        if found:
            assert_unchanged(shadow.optimizer, before)
    assert {float(s["step"]) for s in shadow.optimizer.state.values()} == {2.0}


def test_error_is_not_raised_for_what_the_scaler_found() -> None:
    params = make_params(*SHAPES)
    optimizer = fusedstep.AdamW(params, nonfinite="error")
    set_grads(params)
    optimizer.step()
    before = snapshot(optimizer)
    put_bad(params, math.inf)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()  # the scaler lowers its scale and continues, as with any optimizer
    assert_unchanged(optimizer, before)
