"""AdamW against its NumPy reference bit for bit, against torch.optim.AdamW within tolerance."""

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
from tests.support.tensors import make_params

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
    compare_with_reference("AdamW", options, device)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@every_option
def test_is_close_to_torch(options: dict[str, Any], implementation: str) -> None:
    compare_with_torch("AdamW", options, implementation)


@pytest.mark.parametrize("name", in_float64(OPTIONS))
def test_is_close_to_torch_in_float64(name: str) -> None:
    compare_with_torch_in_float64("AdamW", OPTIONS[name])


BETA = "be at least 0 and below 1"
nan = math.nan


@pytest.mark.parametrize(
    ("options", "argument", "must", "got", "error"),
    [
        ({"eps": -1e-8}, "eps", "be 0 or more", "-1e-08", ValueError),
        ({"eps": nan}, "eps", "be 0 or more", "nan", ValueError),
        ({"betas": (1.0, 0.9)}, "betas[0]", BETA, "1.0", ValueError),
        ({"betas": (-0.1, 0.9)}, "betas[0]", BETA, "-0.1", ValueError),
        ({"betas": (0.9, 1.5)}, "betas[1]", BETA, "1.5", ValueError),
        ({"betas": (0.9, nan)}, "betas[1]", BETA, "nan", ValueError),
        ({"betas": (0.9, "a")}, "betas[1]", "be a number", "str", TypeError),
    ],
)
def test_wrong_hyperparameters(
    options: dict[str, Any], argument: str, must: str, got: str, error: type[Exception]
) -> None:
    with refuses("AdamW", argument, must, got, error):
        fusedstep.AdamW(make_params((3,)), **options)


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.99, 0.999), 0.9, "ab", None])
def test_betas_that_are_no_pair(betas: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^AdamW: betas.* must .*, got "):
        fusedstep.AdamW(make_params((3,)), betas=betas)
