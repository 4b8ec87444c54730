"""Modes that do not exist, or that a parameter cannot have: refused before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.optimizers import Kind, every_kind
from tests.support.refusals import refuses
from tests.support.tensors import make_params, set_grads

HALF = torch.bfloat16
# Options, the argument, what it must be, what it is.
VALUES: list[tuple[dict[str, Any], str, str, str, type[Exception]]] = [
    ({"state_dtype": "int4"}, "state_dtype", "be None, torch.bfloat16 or 'int8'", "'int4'",
     ValueError),
    ({"state_dtype": torch.float16}, "state_dtype", "be None, .*", "torch.float16", ValueError),
    ({"master": "float64"}, "master", "be None, 'float32' or 'remainder'", "'float64'", ValueError),
    ({"master": torch.float32}, "master", "be None, .*", "torch.float32", ValueError),
    ({"master": ["float32"]}, "master", "be None, .*", ".*", ValueError),
    ({"stochastic_rounding": 1}, "stochastic_rounding", "be True or False", "1", TypeError),
    ({"stochastic_rounding": True, "master": "remainder"}, "stochastic_rounding",
     "be False where master='remainder' .*", "True", ValueError),
    ({"seed": -1}, "seed", f"be at least 0 and below {2**64}", "-1", ValueError),
    ({"seed": 2**64}, "seed", f"be at least 0 and below {2**64}", str(2**64), ValueError),
    ({"seed": 1.0}, "seed", "be an int", "float 1.0", TypeError),
    ({"seed": True}, "seed", "be an int", "bool True", TypeError),
    ({"ema_decay": 1.0}, "ema_decay", "be at least 0 and below 1", "1.0", ValueError),
    ({"ema_decay": float("nan")}, "ema_decay", "be at least 0 and below 1", "nan", ValueError),
    ({"ema_decay": "0.9"}, "ema_decay", "be a number", "str", TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("options", "argument", "must", "got", "error"), VALUES)
@every_kind
def test_values(
    kind: Kind, options: dict[str, Any], argument: str, must: str, got: str, error: type[Exception]
) -> None:
    with refuses(kind.name, argument, must, got, error):
        kind.ours(make_params((3,), dtype=HALF), **options)


# Options, the parameter's dtype, what it must be.
DTYPES = [
    ({"master": "float32"}, torch.float32, "be bfloat16 where master='float32'"),
    ({"master": "remainder"}, torch.float16, "be bfloat16 where master='remainder'"),
    ({"stochastic_rounding": True}, torch.float64, "be bfloat16 where stochastic_rounding=True"),
    ({"state_dtype": "int8"}, torch.float64, "not be float64 where state_dtype='int8'"),
    ({"state_dtype": HALF}, torch.float64, "not be float64 where state_dtype=torch.bfloat16"),
]


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize(("options", "dtype", "must"), DTYPES)
@every_kind
def test_dtypes(
    kind: Kind, options: dict[str, Any], dtype: torch.dtype, must: str, named: bool
) -> None:
    params: list[Any] = [*make_params((3,), dtype=HALF), *make_params((3,), dtype=dtype)]
    label = "param_groups[0]['params'][1]"
    if named:
        params = list(zip(("weight", "bias"), params, strict=True))
        label = "param_groups[0]['params']['bias']"
    with refuses(kind.name, label, must, str(dtype), ValueError):
        kind.ours(params, **options)


@pytest.mark.parametrize(("options", "dtype", "must"), DTYPES)
def test_a_group_that_is_added(options: dict[str, Any], dtype: torch.dtype, must: str) -> None:
    """It is refused by the optimizer's mode and by one of its own, and not there afterwards."""
    for of_optimizer, of_group in ((options, {}), ({}, options)):
        optimizer = fusedstep.AdamW(make_params((3,), dtype=HALF), **of_optimizer)
        group = {"params": make_params((3,), dtype=dtype), **of_group}
        with refuses("AdamW", "param_groups[1]['params'][0]", must, str(dtype), ValueError):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": make_params((3,), dtype=HALF), **options})


def test_values_of_a_group() -> None:
    optimizer = fusedstep.AdamW(make_params((3,), dtype=HALF), master="remainder")
    for key, value, must in (
        ("master", "half", "be None, 'float32' or 'remainder'"),
        ("state_dtype", "int4", "be None, torch.bfloat16 or 'int8'"),
        ("stochastic_rounding", True, "be False where master='remainder' .*"),
    ):
        group = {"params": make_params((3,), dtype=HALF), key: value}
        with refuses("AdamW", f"param_groups[1]['{key}']", must, repr(value), ValueError):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1


def test_a_dtype_that_changed_is_refused_by_the_step() -> None:
    params = make_params((3,), (4,), dtype=HALF)
    optimizer = fusedstep.AdamW(params, master="float32")
    params[1].data = params[1].data.float()
    set_grads(params)
    before = [p.detach().clone() for p in params]
    with refuses("AdamW", "params[1]", "be bfloat16 where .*", "torch.float32", ValueError):
        optimizer.step()
    assert not optimizer.state
    assert all(map(torch.equal, params, before))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("state_dtype", "int8"), ("master", "float32"), ("stochastic_rounding", True), ("seed", 1),
     ("ema_decay", 0.9)],
)  # fmt: skip
@pytest.mark.parametrize("chosen", [{"fused": False}, {"foreach": True}], ids=str)
def test_beside_torchs_own_step(chosen: dict[str, bool], argument: str, value: Any) -> None:
    with refuses("AdamW", argument, "be .* torch's own step", repr(value), ValueError):
        fusedstep.AdamW(make_params((3,), dtype=HALF), **chosen, **{argument: value})


def test_float32_state_is_no_mode() -> None:
    params: list[Tensor] = make_params((3,))
    optimizer = fusedstep.AdamW([{"params": params, "state_dtype": torch.float32}])
    assert optimizer.param_groups[0]["state_dtype"] is None
    assert fusedstep.AdamW(params, state_dtype=torch.float32).state_dtype is None


def test_modes_are_not_set_later() -> None:
    optimizer = fusedstep.AdamW(make_params((3,)))
    for name in ("state_dtype", "master", "stochastic_rounding", "seed", "ema_decay"):
        with pytest.raises(AttributeError):
            setattr(optimizer, name, None)
