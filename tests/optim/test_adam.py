"""Adam against its NumPy reference bit for bit, against torch.optim.Adam within tolerance."""

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
    IMPLEMENTATIONS,
    compare_with_reference,
    compare_with_torch,
    compare_with_torch_in_float64,
    in_float64,
)
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

OPTIONS = COMMON | {
    "amsgrad": {"amsgrad": True, "lr": 0.05},
    "decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.1},
    "no momentum": {"betas": (0.0, 0.0)},
    "no eps": {"eps": 0.0, "lr": 0.1},
    "all": {"amsgrad": True, "maximize": True, "weight_decay": 0.1, "lr": 0.03, "max_norm": 0.7},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)

test_any_step_is_that_of_the_reference = any_step(
    fusedstep.Adam,
    betas=st.tuples(share, share),
    eps=small,
    amsgrad=st.booleans(),
    decoupled_weight_decay=st.booleans(),
)


@every_option
def test_equals_the_reference_bit_for_bit(options: dict[str, Any], device: torch.device) -> None:
    compare_with_reference("Adam", options, device)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@every_option
def test_is_close_to_torch(options: dict[str, Any], implementation: str) -> None:
    compare_with_torch("Adam", options, implementation)


@pytest.mark.parametrize("name", in_float64(OPTIONS))
def test_is_close_to_torch_in_float64(name: str) -> None:
    compare_with_torch_in_float64("Adam", OPTIONS[name])


@pytest.mark.parametrize(
    ("options", "argument", "must", "got", "kind"),
    [
        ({"lr": -1.0}, "lr", "be 0 or more", "-1.0", ValueError),
        ({"eps": math.nan}, "eps", "be 0 or more", "nan", ValueError),
        ({"weight_decay": "a"}, "weight_decay", "be a number", "str", TypeError),
        ({"betas": (1.0, 0.9)}, "betas[0]", "be at least 0 and below 1", "1.0", ValueError),
        ({"betas": 0.9}, "betas", "be a pair of numbers", "0.9", ValueError),
    ],
)
def test_wrong_hyperparameters(
    options: dict[str, Any], argument: str, must: str, got: str, kind: type[Exception]
) -> None:
    with refuses("Adam", argument, must, got, kind):
        fusedstep.Adam(make_params((3,)), **options)


def test_decoupled_decay_makes_it_adamw() -> None:
    ours = make_params((300,), (4, 5))
    theirs = copies(ours)
    options = {"lr": 0.05, "weight_decay": 0.3, "amsgrad": True}
    adam = fusedstep.Adam(ours, decoupled_weight_decay=True, **options)
    adamw = fusedstep.AdamW(theirs, **options)
    for step in range(5):
        for params, optimizer in ((ours, adam), (theirs, adamw)):
            set_grads(params, seed=step)
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits(p, q, "parameter")


def test_a_checkpoint_says_which_decay_adam_has_but_not_adamw() -> None:
    params = make_params((5,))
    decoupled = fusedstep.AdamW(params, weight_decay=0.5).state_dict()
    added = fusedstep.Adam(params, weight_decay=0.5).state_dict()
    adam, adamw = fusedstep.Adam(params), fusedstep.AdamW(params)
    adam.load_state_dict(decoupled)
    adamw.load_state_dict(added)
    assert adam.param_groups[0]["decoupled_weight_decay"] is True  # both as torch's
    assert adamw.param_groups[0]["decoupled_weight_decay"] is True


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_betas_may_be_tensors(shape: tuple[int, ...]) -> None:
    tensors, floats = make_params((30,)), make_params((30,))
    betas = (torch.full(shape, 0.5), torch.full(shape, 0.75))
    optimizers = fusedstep.Adam(tensors, betas=betas), fusedstep.Adam(floats, betas=(0.5, 0.75))
    for params, optimizer in zip((tensors, floats), optimizers, strict=True):
        set_grads(params)
        optimizer.step()
    assert_same_bits(*tensors, *floats)
