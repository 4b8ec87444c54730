"""Adam and AdamW: the bits of their NumPy reference, torch's numbers, one rule for both."""

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
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

BOTH = COMMON | {
    "amsgrad": {"amsgrad": True, "lr": 0.05},
    "no momentum": {"betas": (0.0, 0.0)},
    "no eps": {"eps": 0.0, "lr": 0.1},
}
ADAM = BOTH | {
    "decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.1},
    "all": {"amsgrad": True, "maximize": True, "weight_decay": 0.1, "lr": 0.03, "max_norm": 0.7},
}
ADAMW = BOTH | {
    "no decay": {"weight_decay": 0.0},
    "gpt": {"lr": 6e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
    "all": {"max_norm": 0.7, "amsgrad": True, "maximize": True, "lr": 0.3},
}
every_case = cases(Adam=ADAM, AdamW=ADAMW)


@every_case
def test_equals_the_reference_bit_for_bit(
    name: str, options: dict[str, Any], device: torch.device
) -> None:
    compare_with_reference(name, options, device)


@every_case
def test_is_close_to_torch(name: str, options: dict[str, Any]) -> None:
    compare_with_torch(name, options)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@cases(Adam={"all": ADAM["all"]}, AdamW={"all": ADAMW["all"]})
def test_is_close_to_every_implementation_of_torch(
    name: str, options: dict[str, Any], implementation: str
) -> None:
    compare_with_torch(name, options, implementation)


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
