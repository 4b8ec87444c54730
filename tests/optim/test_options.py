"""Options: their defaults and documentation, and what is refused before anything is written."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor

import fusedstep
from fusedstep.optim.options import OptionArguments, Options
from tests.support.optimizers import OPTIMIZERS, Kind, every_kind, every_namesake
from tests.support.refusals import refuses
from tests.support.tensors import make_params, name_of

HALF = torch.bfloat16
nan, inf = math.nan, math.inf
MASTER = "be None, 'float32', 'remainder' or 'correction'"
NUMBER, BETA = "be 0 or more", "be at least 0 and below 1"
SEED, ORDER = f"be at least 0 and below {2**64}", "be 2, 1 or inf"
# Options, the argument that is refused, what it must be, what it is.
VALUES: list[tuple[dict[str, Any], str, str, str, type[Exception]]] = [
    ({"max_norm": -1.0}, "max_norm", NUMBER, "-1.0", ValueError),
    ({"max_norm": nan}, "max_norm", NUMBER, "nan", ValueError),
    ({"max_norm": "1"}, "max_norm", "be a number", "str", TypeError),
    ({"norm_type": 3.0}, "norm_type", ORDER, "3.0", ValueError),
    ({"norm_type": 0}, "norm_type", ORDER, "0.0", ValueError),
    ({"norm_type": nan}, "norm_type", ORDER, "nan", ValueError),
    ({"norm_type": -inf}, "norm_type", ORDER, "-inf", ValueError),
    ({"norm_type": "two"}, "norm_type", ORDER, "'two'", TypeError),
    ({"nonfinite": "ignore"}, "nonfinite", "be one of .*skip, error", "'ignore'", ValueError),
    ({"nonfinite": None}, "nonfinite", "be one of .*skip, error", "None", ValueError),
    ({"state_dtype": "int4"}, "state_dtype", "be None, torch.bfloat16 or 'int8'", "'int4'",
     ValueError),
    ({"state_dtype": torch.float16}, "state_dtype", "be None, .*", "torch.float16", ValueError),
    ({"master": "float64"}, "master", MASTER, "'float64'", ValueError),
    ({"master": torch.float32}, "master", "be None, .*", "torch.float32", ValueError),
    ({"master": ["float32"]}, "master", "be None, .*", ".*", ValueError),
    ({"stochastic_rounding": 2}, "stochastic_rounding", "be True or False", "2", TypeError),
    ({"stochastic_rounding": True, "master": "remainder"}, "stochastic_rounding",
     "be False when master='remainder' is set", "True", ValueError),
    ({"stochastic_rounding": True, "master": "correction"}, "stochastic_rounding",
     "be False when master='correction' is set", "True", ValueError),
    ({"seed": -1}, "seed", SEED, "-1", ValueError),
    ({"seed": 2**64}, "seed", SEED, str(2**64), ValueError),
    ({"seed": 1.0}, "seed", "be an int", "float 1.0", TypeError),
    ({"seed": True}, "seed", "be an int", "bool True", TypeError),
    ({"ema_decay": 1.0}, "ema_decay", BETA, "1.0", ValueError),
    ({"ema_decay": nan}, "ema_decay", BETA, "nan", ValueError),
    ({"ema_decay": "0.9"}, "ema_decay", "be a number", "str", TypeError),
    ({"norm_groups": 3}, "norm_groups", "be a sequence of process groups", "int", TypeError),
    ({"norm_groups": [3]}, "norm_groups[0]", "be a process group", "int", TypeError),
]  # fmt: skip


def test_type_checkers_see_the_fields_of_options() -> None:
    assert get_type_hints(OptionArguments) == get_type_hints(Options)


def test_options_are_an_attribute_that_is_not_changed_in_place() -> None:
    optimizer = fusedstep.AdamW(make_params((3,)), max_norm=1, norm_type="inf")
    assert optimizer.options == Options(max_norm=1.0, norm_type=inf)
    for field in fields(Options):
        assert getattr(optimizer, field.name) == getattr(optimizer.options, field.name)
    with pytest.raises(FrozenInstanceError):
        optimizer.options.seed = 1


@pytest.mark.parametrize(("options", "argument", "must", "got", "error"), VALUES)
def test_the_constructor_refuses(
    options: dict[str, Any], argument: str, must: str, got: str, error: type[Exception]
) -> None:
    for kind in OPTIMIZERS:
        with refuses(kind.name, argument, must, got, error):
            kind.ours(make_params((3,), dtype=HALF), **options)
    with refuses("Muon", argument, must, got, error):
        fusedstep.Muon(make_params((3, 4), dtype=HALF), **options)


@pytest.mark.parametrize(("options", "argument", "must", "got", "error"), VALUES[:10])
def test_between_steps_the_same_is_refused(
    options: dict[str, Any], argument: str, must: str, got: str, error: type[Exception]
) -> None:
    for kind in OPTIMIZERS:
        optimizer = kind.ours(make_params((3,)), max_norm=1.0)
        before = optimizer.options
        with refuses(kind.name, argument, must, got, error):
            setattr(optimizer, argument, options[argument])
        assert optimizer.options == before


@every_kind
def test_modes_are_not_set_later(kind: Kind) -> None:
    optimizer = kind.ours(make_params((3,)))
    for name in (
        "norm_groups",
        "state_dtype",
        "master",
        "stochastic_rounding",
        "seed",
        "ema_decay",
    ):
        with pytest.raises(AttributeError):
            setattr(optimizer, name, None)
    with pytest.raises(AttributeError):
        optimizer.grad_attribute = "main_grad"


@pytest.mark.parametrize("chosen", [{"fused": False}, {"foreach": True}], ids=str)
@every_namesake
def test_torchs_own_step_takes_no_options(kind: Kind, chosen: dict[str, bool]) -> None:
    for argument, value in {
        "max_norm": 1.0, "nonfinite": "skip", "state_dtype": "int8", "master": "float32",
        "stochastic_rounding": True, "seed": 1, "ema_decay": 0.9, "grad_attribute": "main_grad",
    }.items():  # fmt: skip
        must = "be .* where fused=False or foreach=True selects torch's own step"
        with refuses(kind.name, argument, must, repr(value), ValueError):
            kind.ours(make_params((3,), dtype=HALF), **chosen, **{argument: value})


def test_float32_state_is_the_default() -> None:
    params: list[Tensor] = make_params((3,))
    optimizer = fusedstep.AdamW([{"params": params, "state_dtype": torch.float32}])
    assert optimizer.param_groups[0]["state_dtype"] is None
    assert fusedstep.AdamW(params, state_dtype=torch.float32).state_dtype is None


# --- modes of parameters and groups ---------------------------------------------------------------

# Options, the parameter's dtype, what it must be.
DTYPES = [
    ({"master": "float32"}, torch.float32, "be bfloat16 where master='float32'"),
    ({"master": "remainder"}, torch.float16, "be bfloat16 where master='remainder'"),
    ({"master": "correction"}, torch.float32, "be bfloat16 where master='correction'"),
    ({"stochastic_rounding": True}, torch.float64, "be bfloat16 where stochastic_rounding=True"),
    ({"state_dtype": "int8"}, torch.float64, "not be float64 where state_dtype='int8'"),
    ({"state_dtype": HALF}, torch.float64, "not be float64 where state_dtype=torch.bfloat16"),
]
every_wrong_dtype = pytest.mark.parametrize(("options", "dtype", "must"), DTYPES, ids=name_of)


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@every_wrong_dtype
def test_parameters_whose_dtype_the_mode_does_not_fit(
    options: dict[str, Any], dtype: torch.dtype, must: str, named: bool
) -> None:
    params: list[Any] = [*make_params((3,), dtype=HALF), *make_params((3,), dtype=dtype)]
    label = "param_groups[0]['params'][1]"
    if named:
        params = list(zip(("weight", "bias"), params, strict=True))
        label = "param_groups[0]['params']['bias']"
    for kind in OPTIMIZERS:
        with refuses(kind.name, label, must, str(dtype), ValueError):
            kind.ours(params, **options)


@every_wrong_dtype
def test_a_group_whose_dtype_the_mode_does_not_fit_is_not_added(
    options: dict[str, Any], dtype: torch.dtype, must: str
) -> None:
    """Whether the mode is the optimizer's or the group's own."""
    for of_optimizer, of_group in ((options, {}), ({}, options)):
        optimizer = fusedstep.AdamW(make_params((3,), dtype=HALF), **of_optimizer)
        group = {"params": make_params((3,), dtype=dtype), **of_group}
        with refuses("AdamW", "param_groups[1]['params'][0]", must, str(dtype), ValueError):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": make_params((3,), dtype=HALF), **options})


def test_a_group_with_a_mode_that_does_not_exist_is_not_added() -> None:
    optimizer = fusedstep.AdamW(make_params((3,), dtype=HALF), master="remainder")
    for key, value, must in (
        ("master", "half", MASTER),
        ("state_dtype", "int4", "be None, torch.bfloat16 or 'int8'"),
        ("stochastic_rounding", True, "be False when master='remainder' is set"),
    ):
        group = {"params": make_params((3,), dtype=HALF), key: value}
        with refuses("AdamW", f"param_groups[1]['{key}']", must, repr(value), ValueError):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
