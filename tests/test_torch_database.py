"""The inputs that torch tries its own AdamW on: every option, and every error it expects."""

from __future__ import annotations

import pytest
import torch
from helpers import copies, make_params, set_grads
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInput,
    optim_error_inputs_func_adamw,
    optim_inputs_func_adamw,
)

import fusedstep

CPU = torch.device("cpu")
INPUTS = optim_inputs_func_adamw(CPU)
ERRORS = optim_error_inputs_func_adamw(CPU, torch.float32)


@pytest.mark.parametrize("options", INPUTS, ids=lambda one: one.desc)
def test_every_input_is_close_to_torch(options: OptimizerInput) -> None:
    ours = make_params((40,), (3, 5), ())
    theirs = copies(ours)
    optimizers = [
        kind(params, **options.kwargs)
        for kind, params in ((fusedstep.AdamW, ours), (torch.optim.AdamW, theirs))
    ]
    for step in range(5):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_grads(params, seed=step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    by_torch, by_us = (optimizer.state_dict() for optimizer in reversed(optimizers))
    assert by_us["state"].keys() == by_torch["state"].keys()
    for ours, theirs in zip(by_us["state"].values(), by_torch["state"].values(), strict=True):
        assert ours.keys() == theirs.keys()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("error", ERRORS, ids=lambda one: one.optimizer_error_input.desc)
def test_every_error_input_is_answered_alike(error: ErrorOptimizerInput) -> None:
    wrong = error.optimizer_error_input
    params = make_params((4,)) if wrong.params is None else wrong.params
    warns = issubclass(error.error_type, Warning)
    for kind in (torch.optim.AdamW, fusedstep.AdamW):
        with (pytest.warns if warns else pytest.raises)(error.error_type):
            kind(params, **wrong.kwargs)
