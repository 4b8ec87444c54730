"""Adagrad against its NumPy reference bit for bit, against torch.optim.Adagrad within tolerance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fusedstep
from tests.support.compare import (
    COMMON,
    IMPLEMENTATIONS,
    cases,
    compare_with_reference,
    compare_with_torch,
)
from tests.support.shadow import Shadow
from tests.support.tensors import DTYPES, assert_same_bits, copies, make_params, name_of, set_grads

OPTIONS = COMMON | {
    "rate decay": {"lr_decay": 0.5, "lr": 0.1},
    "initial value": {"initial_accumulator_value": 0.1},
    "large eps": {"eps": 0.1},
    "all": {
        "lr_decay": 0.1, "initial_accumulator_value": 2.0, "eps": 1e-3, "weight_decay": 0.1,
        "maximize": True, "max_norm": 0.7,
    },
}  # fmt: skip
every_case = cases(Adagrad=OPTIONS)


@every_case
def test_equals_the_reference_bit_for_bit(
    name: str, options: dict[str, Any], device: torch.device
) -> None:
    compare_with_reference(name, options, device)


@every_case
def test_is_close_to_torch(name: str, options: dict[str, Any]) -> None:
    compare_with_torch(name, options)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_is_close_to_every_implementation_of_torch(implementation: str) -> None:
    compare_with_torch("Adagrad", OPTIONS["all"], implementation)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_constructor_makes_the_state(dtype: torch.dtype, device: torch.device) -> None:
    params = make_params((7, 3), (), (0,), dtype=dtype, device=device)
    params.append(make_params((4, 5), dtype=dtype, device=device)[0].detach().t().requires_grad_())
    optimizer = fusedstep.Adagrad(params, initial_accumulator_value=0.1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for param in params:
        state = optimizer.state[param]
        assert_same_bits(state["sum"], torch.full_like(param, 0.1, dtype=wide), "sum")
        assert state["sum"].stride() == param.stride()
        assert_same_bits(state["step"], torch.tensor(0.0), "step")
        assert state["step"].device == state["sum"].device == param.device
    before = [optimizer.state[p]["sum"] for p in params]
    set_grads(params)
    optimizer.step()
    for param, total in zip(params, before, strict=True):
        assert optimizer.state[param]["sum"] is total  # the same tensor objects


def test_state_before_the_first_step_is_that_of_torch() -> None:
    params = make_params((5,), (2, 3))
    ours = fusedstep.Adagrad(params, initial_accumulator_value=0.5).state_dict()
    theirs = torch.optim.Adagrad(params, initial_accumulator_value=0.5).state_dict()
    assert ours["state"].keys() == theirs["state"].keys()
    for mine, other in zip(ours["state"].values(), theirs["state"].values(), strict=True):
        assert mine.keys() == other.keys()
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_initial_value_is_the_constructors_whatever_a_group_says() -> None:
    ours = make_params((5,), (6,), (7,))
    theirs = copies(ours)
    a, b, c = ours
    group = {"params": [b], "initial_accumulator_value": 9.0}
    optimizer = fusedstep.Adagrad([{"params": [a]}, group], initial_accumulator_value=0.5)
    optimizer.add_param_group({"params": [c], "initial_accumulator_value": 7.0})
    assert len(optimizer.state[c]) == 0  # made with its first step
    # Torch 2.11 has no state for groups that are added, so its optimizer has all from the start.
    reference = torch.optim.Adagrad(theirs, initial_accumulator_value=0.5)
    for param, other in zip(ours[:2], theirs, strict=False):
        assert_same_bits(optimizer.state[param]["sum"], reference.state[other]["sum"])
    shadow = Shadow(optimizer)
    for step in range(3):
        for params in (ours, theirs):
            set_grads(params, seed=step)
        shadow.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_cleared_state_begins_with_the_initial_value() -> None:
    params = make_params((30,))
    shadow = Shadow(fusedstep.Adagrad(params, initial_accumulator_value=0.5))
    for step in range(4):
        set_grads(params, seed=step)
        if step == 2:
            shadow.optimizer.state.clear()
            shadow._take_over(params[0])
        shadow.step()
    total = sum(g.square() for g in gradients(params, 2, 4)) + 0.5
    torch.testing.assert_close(shadow.optimizer.state[params[0]]["sum"], total)


def gradients(params: list[torch.Tensor], first: int, end: int) -> list[torch.Tensor]:
    """Those of one parameter in these steps."""
    found = []
    for step in range(first, end):
        set_grads(params, seed=step)
        found.append(params[0].grad)
    return found


def test_rate_decays_by_the_steps_of_each_parameter() -> None:
    params = make_params((20,), (30,))
    shadow = Shadow(fusedstep.Adagrad(params, lr=0.1, lr_decay=1.0))
    for step in range(5):
        set_grads(params, seed=step)
        params[1].grad = params[1].grad if step % 2 else None
        shadow.step()
    assert [float(shadow.optimizer.state[p]["step"]) for p in params] == [5.0, 2.0]


def test_state_may_be_shared_between_processes() -> None:
    params = make_params((20,))
    shadow = Shadow(fusedstep.Adagrad(params))
    shadow.optimizer.share_memory()
    for step in range(2):
        set_grads(params, seed=step)
        shadow.step()
    assert shadow.optimizer.state[params[0]]["sum"].is_shared()
