"""Lion against its NumPy reference bit for bit, and against Algorithm 2 of its paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import fusedstep
from tests.support.compare import COMMON, SHAPES, cases, compare_with_reference
from tests.support.shadow import Shadow
from tests.support.tensors import DTYPES, assert_same_bits, copies, make_params, name_of, set_grads

OPTIONS = COMMON | {
    "no momentum": {"betas": (0.0, 0.0)},
    "language model": {"lr": 2e-4, "betas": (0.95, 0.98), "weight_decay": 0.5},
    "all": {"betas": (0.5, 0.6), "weight_decay": 0.1, "maximize": True, "max_norm": 0.7},
}


@cases(Lion=OPTIONS)
def test_equals_the_reference_bit_for_bit(
    name: str, options: dict[str, Any], device: torch.device
) -> None:
    compare_with_reference(name, options, device)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.5)])
def test_follows_algorithm_2(
    betas: tuple[float, float], weight_decay: float, maximize: bool
) -> None:
    beta1, beta2 = betas
    ours = make_params(*SHAPES, dtype=torch.float64)
    optimizer = fusedstep.Lion(ours, 0.02, betas, weight_decay, maximize=maximize)
    expected = [p.detach().clone() for p in ours]
    averages = [torch.zeros_like(p) for p in expected]
    for step in range(6):
        set_grads(ours, seed=step)
        for i, param in enumerate(ours):
            grad = -param.grad if maximize else param.grad
            update = (beta1 * averages[i] + (1 - beta1) * grad).sign()
            expected[i] = expected[i] - 0.02 * (update + weight_decay * expected[i])
            averages[i] = beta2 * averages[i] + (1 - beta2) * grad
        optimizer.step()
    for param, value, average in zip(ours, expected, averages, strict=True):
        torch.testing.assert_close(param.detach(), value, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(optimizer.state[param]["exp_avg"], average, rtol=1e-12, atol=0)


@pytest.mark.parametrize("option", ["fused", "foreach", "differentiable", "eps"])
def test_arguments_it_does_not_have(option: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        fusedstep.Lion(make_params((3,)), **{option: False})


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_every_element_moves_by_the_rate(scale: float) -> None:
    (param,) = make_params((1000,))
    before = param.detach().clone()
    optimizer = fusedstep.Lion([param], lr=0.25)
    set_grads([param], scale=scale)
    optimizer.step()
    assert_same_bits(param, before - 0.25 * param.grad.sign(), "parameter")


def test_zero_moves_nothing_and_nan_is_passed_on() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = fusedstep.Lion([param])
    param.grad = torch.tensor([0.0, -0.0, math.nan])
    optimizer.step()
    assert_same_bits(param, torch.tensor([1.0, 1.0, math.nan]), "parameter")


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_state_is_one_average_and_goes_through_a_checkpoint(dtype: torch.dtype) -> None:
    params = make_params((40,), (3, 4), dtype=dtype)
    shadow = Shadow(fusedstep.Lion(params, lr=0.01, weight_decay=0.1))
    for step in range(2):
        set_grads(params, seed=step)
        shadow.step()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    state = shadow.optimizer.state_dict()["state"]
    assert [{k: v.dtype for k, v in one.items()} for one in state.values()] == [
        {"exp_avg": wide}
    ] * 2
    loaded = Shadow(fusedstep.Lion(copies(params)))
    loaded.optimizer.load_state_dict(shadow.optimizer.state_dict())
    for one in (shadow, loaded):
        ours = one.optimizer.param_groups[0]["params"]
        set_grads(ours, seed=2)
        one.step()
    for p, q in zip(params, loaded.optimizer.param_groups[0]["params"], strict=True):
        assert_same_bits(p, q, "parameter")
