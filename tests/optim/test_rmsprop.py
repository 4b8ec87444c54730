"""RMSprop against its NumPy reference bit for bit, against torch.optim.RMSprop within tolerance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

import fusedstep
from tests.support.any_step import any_step, share, small
from tests.support.compare import (
    COMMON,
    compare_with_reference,
    compare_with_torch,
    compare_with_torch_in_float64,
    in_float64,
)
from tests.support.refusals import refuses
from tests.support.shadow import Shadow
from tests.support.tensors import copies, make_params, set_grads

OPTIONS = COMMON | {
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True},
    "centered, momentum": {"centered": True, "momentum": 0.9},
    "short memory": {"alpha": 0.5, "eps": 0.1},
    "no memory": {"alpha": 0.0, "lr": 0.1},
    "all": {
        "centered": True, "momentum": 0.5, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1,
        "maximize": True, "max_norm": 0.7,
    },
}  # fmt: skip
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)

test_any_step_is_that_of_the_reference = any_step(
    fusedstep.RMSprop,
    alpha=share,
    eps=small,
    momentum=st.just(0.0) | share,
    centered=st.booleans(),
)


@every_option
def test_equals_the_reference_bit_for_bit(options: dict[str, Any], device: torch.device) -> None:
    compare_with_reference("RMSprop", options, device)


@pytest.mark.parametrize("implementation", ["for-loop", "foreach"])  # torch has no fused one
@every_option
def test_is_close_to_torch(options: dict[str, Any], implementation: str) -> None:
    compare_with_torch("RMSprop", options, implementation)


@pytest.mark.parametrize("name", in_float64(OPTIONS))
def test_is_close_to_torch_in_float64(name: str) -> None:
    compare_with_torch_in_float64("RMSprop", OPTIONS[name])


@pytest.mark.parametrize("value", [-0.1, math.nan])
@pytest.mark.parametrize("option", ["lr", "alpha", "eps", "weight_decay", "momentum"])
def test_wrong_hyperparameters(option: str, value: float) -> None:
    with refuses("RMSprop", option, "be 0 or more", str(value), ValueError):
        fusedstep.RMSprop(make_params((3,)), **{option: value})
    with refuses("RMSprop", option, "be a number", "str", TypeError):
        fusedstep.RMSprop(make_params((3,)), **{option: "a"})


@pytest.mark.parametrize(
    ("late", "new"),
    [
        ({"momentum": 0.9}, ["momentum_buffer"]),
        ({"centered": True}, ["grad_avg"]),
        ({"momentum": 0.9, "centered": True}, ["momentum_buffer", "grad_avg"]),
    ],
)
def test_momentum_and_centered_switched_on_later(late: dict[str, Any], new: list[str]) -> None:
    """torch raises KeyError; with zeros put in by hand it does what is expected of us."""
    ours = make_params((40,), (3, 4))
    theirs = copies(ours)
    shadow, reference = Shadow(fusedstep.RMSprop(ours)), torch.optim.RMSprop(theirs)
    for step in range(6):
        for params in (ours, theirs):
            set_grads(params, seed=step)
        if step == 2:
            shadow.optimizer.param_groups[0].update(late)
            reference.param_groups[0].update(late)
            with pytest.raises(KeyError):
                reference.step()
            for param in theirs:
                reference.state[param].update({name: torch.zeros_like(param) for name in new})
        shadow.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    assert set(new) <= shadow.optimizer.state[ours[0]].keys()


def test_fused_is_no_entry_of_a_group_as_torch_has_none() -> None:
    params = make_params((3,))
    expected = torch.optim.RMSprop(params).state_dict()["param_groups"][0].keys()
    for fused in (None, True, False):
        optimizer = fusedstep.RMSprop(params, fused=fused)
        assert optimizer.state_dict()["param_groups"][0].keys() == expected
    with refuses("RMSprop", "param_groups[1]['fused']", "be True, as .*", "False", ValueError):
        fusedstep.RMSprop(params).add_param_group({"params": make_params((2,)), "fused": False})


def test_fused_and_foreach_together_are_refused_as_by_torch() -> None:
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        fusedstep.RMSprop(make_params((3,)), fused=True, foreach=True)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"])
def test_centered_wants_state_that_is_not_rounded(state_dtype: torch.dtype | str) -> None:
    params = make_params((3,), (4,))
    must = f"be False where state_dtype={state_dtype!r} rounds what it subtracts"
    with refuses("RMSprop", "centered", must, "True", ValueError):
        fusedstep.RMSprop(params, centered=True, state_dtype=state_dtype)
    optimizer = fusedstep.RMSprop(params[:1], state_dtype=state_dtype)
    with refuses("RMSprop", "param_groups[1]['centered']", must, "True", ValueError):
        optimizer.add_param_group({"params": params[1:], "centered": True})
    optimizer.add_param_group({"params": params[1:], "centered": True, "state_dtype": None})
