"""SGD against its NumPy reference bit for bit, against torch.optim.SGD within tolerance."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

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
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "average": {"momentum": 0.9, "dampening": 0.9},
    "more than the gradient": {"momentum": 0.5, "dampening": -0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "tensor decay": {"weight_decay": torch.tensor(0.1)},
    "all": {
        "momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "maximize": True, "max_norm": 0.7
    },
}  # fmt: skip
every_case = cases(SGD=OPTIONS)


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
    compare_with_torch("SGD", OPTIONS["all"], implementation)


class Both:
    """Our SGD and torch's plain one, over the same parameters and gradients."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.ours = make_params((40,), (3, 4), (), dtype=dtype)
        self.theirs = copies(self.ours)
        self.shadow = Shadow(fusedstep.SGD(self.ours, **options))
        self.torch = torch.optim.SGD(self.theirs, foreach=False, **options)

    @property
    def optimizers(self) -> tuple[Optimizer, Optimizer]:
        return self.shadow.optimizer, self.torch

    def step(self, seed: int, without: tuple[int, ...] = ()) -> None:
        for params in (self.ours, self.theirs):
            set_grads(params, seed=seed)
            for i in without:
                params[i].grad = None
        self.shadow.step()
        self.torch.step()
        torch.testing.assert_close(self.ours, self.theirs)


def buffers(params: list[Tensor], optimizer: Optimizer) -> list[Tensor]:
    return [optimizer.state[param]["momentum_buffer"] for param in params]


def test_without_momentum_there_is_no_state() -> None:
    both = Both(weight_decay=0.1)
    for step in range(3):
        both.step(step)
    for optimizer in both.optimizers:
        assert optimizer.state_dict()["state"] == {}


def test_buffer_begins_as_the_gradient() -> None:
    both = Both(momentum=0.9, dampening=0.7)
    both.step(0)
    for param, buffer in zip(both.ours, buffers(both.ours, both.shadow.optimizer), strict=True):
        assert_same_bits(buffer, param.grad, "momentum_buffer")
    both.step(1)
    assert {float(s["step"]) for s in both.shadow.optimizer.state.values()} == {2.0}


def test_first_gradient_that_comes_late_starts_a_buffer() -> None:
    """torch's fused step raises TypeError here."""
    both = Both(momentum=0.9, dampening=0.5)
    for step, without in enumerate([(1,), (1, 2), (), (0,), ()]):
        both.step(step, without)
    state = both.shadow.optimizer.state
    assert [float(state[param]["step"]) for param in both.ours] == [4.0, 3.0, 4.0]


def test_first_step_that_was_skipped_does_not_count() -> None:
    """torch's fused step uses a buffer that was never written."""
    both = Both(momentum=0.9, dampening=0.5)
    optimizer = both.shadow.optimizer
    for _ in range(2):
        set_grads(both.ours, scale=math.inf)
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(1.0)
        both.shadow.step()
    del optimizer.found_inf, optimizer.grad_scale
    for step in range(3):
        both.step(step)
    torch.testing.assert_close(buffers(both.ours, optimizer), buffers(both.theirs, both.torch))


@pytest.mark.parametrize("momenta", [(0, 0, 0.9, 0.9), (0.9, 0.9, 0, 0, 0.9)])
def test_momentum_switched_on_and_off(momenta: tuple[float, ...]) -> None:
    both = Both(dampening=0.5)
    for step, momentum in enumerate(momenta):
        for optimizer in both.optimizers:
            optimizer.param_groups[0]["momentum"] = momentum
        both.step(step)
    counted = sum(momentum > 0 for momentum in momenta)
    assert {float(s["step"]) for s in both.shadow.optimizer.state.values()} == {counted}


def test_nesterov_of_a_group_is_taken_as_torch_takes_it() -> None:
    both = Both(momentum=0.9)
    for step, change in enumerate([{"nesterov": True}, {"dampening": 0.5}, {"momentum": 0.0}]):
        for optimizer in both.optimizers:
            optimizer.param_groups[0].update(change)
        both.step(step)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_buffer_of_torch_without_a_count_has_begun(dtype: torch.dtype) -> None:
    params = make_params((40,), (3, 4), dtype=dtype)
    theirs = torch.optim.SGD(params, momentum=0.9, dampening=0.5)
    set_grads(params)
    theirs.step()
    begun = [buffer.clone() for buffer in buffers(params, theirs)]
    shadow = Shadow(fusedstep.SGD(params))
    shadow.optimizer.load_state_dict(theirs.state_dict())
    set_grads(params, seed=1)
    shadow.step()
    for param, buffer, first in zip(params, buffers(params, shadow.optimizer), begun, strict=True):
        expected = 0.9 * first.to(buffer.dtype) + 0.5 * param.grad.to(buffer.dtype)
        torch.testing.assert_close(buffer, expected)
    assert {float(s["step"]) for s in shadow.optimizer.state.values()} == {2.0}


def test_none_in_an_old_checkpoint_is_no_buffer() -> None:
    both = Both(momentum=0.9, dampening=0.5)
    state_dict = copy.deepcopy(both.torch.state_dict())
    state_dict["state"] = {i: {"momentum_buffer": None} for i in range(3)}
    for optimizer in both.optimizers:
        optimizer.load_state_dict(state_dict)
    for step in range(3):
        both.step(step)


@pytest.mark.parametrize("theirs", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_the_count_does_not_disturb_torch(theirs: dict[str, bool]) -> None:
    """torch continues from our checkpoint, and we from the one that torch then saves."""
    both = Both(momentum=0.9, dampening=0.5)
    for step in range(2):
        both.step(step)
    params = copies(both.ours)
    reference = torch.optim.SGD(params, **theirs)
    reference.load_state_dict(copy.deepcopy(both.shadow.optimizer.state_dict()))
    for step in range(2, 4):
        both.step(step)
        set_grads(params, seed=step)
        reference.step()
    torch.testing.assert_close(params, both.theirs)
    back = copies(params)
    shadow = Shadow(fusedstep.SGD(back))
    shadow.optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    for step in range(4, 6):
        both.step(step)
        set_grads(back, seed=step)
        shadow.step()
    torch.testing.assert_close(back, both.theirs)
