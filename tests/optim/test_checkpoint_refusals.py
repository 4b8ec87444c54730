"""Checkpoints that are refused: damaged, of another mode or size. Nothing is changed before."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import fusedstep
from tests.support.modes import BFLOAT16
from tests.support.optimizers import Kind, assert_same_run, every_kind, params_of
from tests.support.refusals import Snapshot
from tests.support.tensors import copies, make_params, set_grads

SHAPES = [(300,), (), (0,), (4, 5)]


def run(optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        set_grads(params_of(optimizer), seed=step)
        optimizer.step()


BOTH = {"state_dtype": "int8", "master": "remainder", "ema_decay": 0.9}
Damage = Callable[[dict[str, Any]], Any]


def entry(name: str, change: Callable[[Any], Any]) -> Damage:
    return lambda state: state.update({name: change(state[name])})


def without(name: str) -> Damage:
    return lambda state: state.pop(name)


CODES, HIGH, LOW = "exp_avg.codes", "remainder.high", "remainder.low"


def whole(change: Callable[[Tensor], Tensor]) -> Damage:
    """As in memory, instead of the halves."""

    def put(state: dict[str, Any]) -> None:
        state["remainder"] = change(state.pop(HIGH).short() << 8 | state.pop(LOW))

    return put


DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "no scale": (without("exp_avg_scale"), "exp_avg_scale", "be present with 8-bit codes"),
    "no codes": (without(CODES), "exp_avg", "be present after a step, got None"),
    "short scale": (
        entry("exp_avg_scale", lambda x: x[1:]), "exp_avg_scale", r"have shape \(3, 1\)",
    ),
    "turned scale": (
        entry("exp_avg_scale", lambda x: x.T), "exp_avg_scale", r"have shape \(3, 1\)",
    ),
    "wide scale": (entry("exp_avg_scale", Tensor.double), "exp_avg_scale", "be torch.float32, got"),
    "wrong codes": (
        entry("exp_avg_sq.codes", Tensor.char), "exp_avg_sq", "be torch.uint8",
    ),
    "wide codes": (entry(CODES, Tensor.int), "exp_avg", "be torch.int8 or floating-point, got"),
    "float codes": (entry(CODES, Tensor.float), "exp_avg_scale", "be absent without codes"),
    "other shape": (entry(CODES, lambda x: x[:-1]), "exp_avg", "have its parameter's shape"),
    "values beside codes": (
        lambda state: state.update(exp_avg=torch.zeros(3, 128)), "exp_avg",
        "be absent beside codes, got Tensor",
    ),
    "other half": (
        entry(HIGH, lambda x: x[:-1]), LOW, r"have shape \(2, 128\), as the other, got",
    ),
    "wide half": (entry(HIGH, Tensor.short), HIGH, "be torch.uint8, got torch.int16"),
    "one half": (without(LOW), LOW, "be present with the other half, got None"),
    "other remainder": (whole(lambda x: x[:-1]), "remainder", "have its parameter's shape"),
    "wide remainder": (whole(Tensor.int), "remainder", "be torch.int16, got torch.int32"),
    "other average": (entry("ema", lambda x: x[:-1]), "ema", "have its parameter's shape"),
    "whole average": (entry("ema", Tensor.long), "ema", "be torch.float32, got torch.int64"),
    "no tensor": (entry(CODES, lambda x: [1.0]), "exp_avg", "be a tensor, got list"),
    "NaN steps": (entry("step", lambda x: x * math.nan), "step", "be a whole number, 0 or more"),
    "half a step": (entry("step", lambda x: x + 0.5), "step", "be a whole number, .*, got 2.5"),
    "steps undone": (entry("step", lambda x: -x), "step", "be a whole number, .*, got -2.0"),
    "two counts": (entry("step", lambda x: x.expand(2)), "step", r"have one element, got \(2,\)"),
}  # fmt: skip


def refused(loading: Optimizer, state_dict: dict[str, Any], message: str) -> None:
    """Loading raises, and leaves parameters, state and groups as they were."""
    before, groups = Snapshot(params_of(loading), loading), copy.deepcopy(loading.param_groups)
    with pytest.raises((ValueError, TypeError), match=f"^AdamW: {message}"):
        loading.load_state_dict(state_dict)
    before.check()
    for group, other in zip(loading.param_groups, groups, strict=True):
        assert group.keys() == other.keys()
        assert all(group[key] == other[key] for key in group if key != "params")


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_refused(damage: str, named: bool) -> None:
    params = make_params((5,), (3, 128), **BFLOAT16)
    saving = fusedstep.AdamW(params, lr=0.1, **BOTH)
    run(saving, range(2))
    state_dict = copy.deepcopy(saving.state_dict())
    change, name, must = DAMAGES[damage]
    change(state_dict["state"][1])
    names = ("layer.bias", "layer.weight")
    others = list(zip(names, copies(params), strict=True)) if named else copies(params)
    loading = fusedstep.AdamW(others, **BOTH)
    run(loading, range(1))
    label = r"params\['layer.weight'\]" if named else r"params\[1\]"
    refused(loading, state_dict, rf"state of {label}\['{name}'\] must {must}")


OTHER_MODES = {
    "int8": (
        {"state_dtype": "int8"}, {}, r"\['exp_avg'\] must be absent unless state_dtype='int8'",
    ),
    "int8 in bfloat16": (
        {"state_dtype": "int8"}, {"state_dtype": torch.bfloat16}, r"\['exp_avg'\] must be absent",
    ),
    "master": ({"master": "float32"}, {}, r"\['master'\] must be absent unless master='float32'"),
    "remainder": (
        {"master": "remainder"}, {"master": "float32"}, r"\['remainder'\] must be absent",
    ),
    "correction": (
        {"master": "correction"}, {"master": "remainder"}, r"\['correction'\] must be absent",
    ),
    "average": ({"ema_decay": 0.9}, {}, r"\['ema'\] must be absent unless ema_decay is set"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_MODES)
def test_checkpoints_of_another_mode_are_refused(case: str) -> None:
    saving, loading, message = OTHER_MODES[case]
    params = make_params((3, 128), **BFLOAT16)
    whole = fusedstep.AdamW(params, **saving)
    run(whole, range(2))
    other = fusedstep.AdamW(copies(params), **loading)
    refused(other, whole.state_dict(), r"state of params\[0\]" + message)
    other.load_state_dict(whole.to_torch_state_dict())  # the bridge between modes
    run(other, range(2, 3))


def test_numbers_out_of_range_are_refused() -> None:
    whole, other = (fusedstep.AdamW(make_params((3,))) for _ in range(2))
    state_dict = copy.deepcopy(whole.state_dict())
    state_dict["param_groups"][0]["eps"] = -1.0
    refused(other, state_dict, r"param_groups\[0\]\['eps'\] must be 0 or more, got -1.0")


@every_kind
def test_refused_checkpoint_changes_nothing(kind: Kind) -> None:
    params = make_params((5,), (3,))
    optimizer, untouched = kind.ours(params), kind.ours(copies(params))
    for one in (optimizer, untouched):
        run(one, range(2))
    other = kind.ours(make_params((5,)))
    run(other, range(1))
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(other.state_dict())
    assert_same_run(optimizer, untouched)
    for one in (optimizer, untouched):
        run(one, range(2, 3))
    assert_same_run(optimizer, untouched)
