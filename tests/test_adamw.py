"""AdamW against its NumPy reference bit for bit, against torch.optim.AdamW within tolerance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from any_step import any_step, share, small
from hypothesis import strategies as st
from trials import (
    COMMON,
    IMPLEMENTATIONS,
    follow_reference,
    follow_torch,
    follow_torch_in_float64,
    in_float64,
)

import fusedstep

OPTIONS = COMMON | {
    "amsgrad": {"amsgrad": True, "lr": 0.05},
    "no decay": {"weight_decay": 0.0},
    "no momentum": {"betas": (0.0, 0.0)},
    "gpt": {"lr": 6e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
    "no eps": {"eps": 0.0, "lr": 0.1},
    "all": {"max_norm": 0.7, "amsgrad": True, "maximize": True, "lr": 0.3},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)

test_any_step_is_that_of_the_reference = any_step(
    fusedstep.AdamW, betas=st.tuples(share, share), eps=small, amsgrad=st.booleans()
)


@every_option
def test_equals_the_reference_bit_for_bit(options: dict[str, Any], device: torch.device) -> None:
    follow_reference("AdamW", options, device)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@every_option
def test_is_close_to_torch(options: dict[str, Any], implementation: str) -> None:
    follow_torch("AdamW", options, implementation)


@pytest.mark.parametrize("name", in_float64(OPTIONS))
def test_is_close_to_torch_in_float64(name: str) -> None:
    follow_torch_in_float64("AdamW", OPTIONS[name])
