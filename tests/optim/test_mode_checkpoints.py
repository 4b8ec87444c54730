"""Checkpoints of every mode: bit for bit, from torch, to torch, and what is refused."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import fusedstep
from tests.support.modes import BFLOAT16, MODES, every_mode
from tests.support.optimizers import Kind, assert_same_run, every_kind, every_namesake, params_of
from tests.support.refusals import Snapshot
from tests.support.shadow import Shadow
from tests.support.tensors import assert_same_bits, copies, laid_out, make_params, set_grads

SHAPES = [(300,), (), (0,), (4, 5)]


def run(optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        set_grads(params_of(optimizer), seed=step)
        optimizer.step()


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@every_mode
@every_kind
def test_saved_and_loaded_run_continues_bit_for_bit(kind: Kind, mode: str) -> None:
    options, dtype = MODES[mode]
    whole = kind.ours(make_params(*SHAPES, **dtype), max_norm=1.0, **options)
    run(whole, range(3))
    saved = through_a_file(whole.state_dict())
    other = getattr(fusedstep, kind.name)(copies(params_of(whole)), max_norm=1.0, **options)
    other.load_state_dict(saved)
    for p, q in zip(params_of(whole), params_of(other), strict=True):
        for name, value in whole.state[p].items():
            assert_same_bits(other.state[q][name], value, name)
    run(whole, range(3, 6))
    run(other, range(3, 6))
    if any(whole.state.values()):
        assert_same_run(other, whole)


@every_mode
@every_namesake
def test_a_checkpoint_of_torch_loads_into_every_mode(kind: Kind, mode: str) -> None:
    options, dtype = MODES[mode]
    params = make_params(*SHAPES)
    theirs = kind.fitting(options).torchs(params)
    run(theirs, range(3))
    ours = getattr(fusedstep, kind.name)([p.detach().to(**dtype) for p in params], **options)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    for p, q in zip(params_of(ours), params, strict=True):
        for name, value in ours.to_torch_state_dict()["state"][params_index(ours, p)].items():
            # An eighth: the widest gap between two codes, as a part of what lies between them.
            close = {"rtol": 0.13, "atol": float(value.abs().max() if value.numel() else 0) * 1e-2}
            expected = theirs.state[q][name].to(value.dtype)
            torch.testing.assert_close(value, expected, **close if name != "step" else {})
    shadow = Shadow(ours)
    for step in range(3, 5):
        set_grads(params_of(ours), seed=step)
        shadow.step()  # the kernels ran, with the state and step counts of the checkpoint


def params_index(optimizer: Optimizer, param: Tensor) -> int:
    return next(i for i, p in enumerate(params_of(optimizer)) if p is param)


@every_mode
@every_namesake
def test_every_mode_exports_a_checkpoint_of_torch(kind: Kind, mode: str) -> None:
    options, dtype = MODES[mode]
    ours = kind.ours(make_params(*SHAPES, **dtype), **options)
    run(ours, range(3))
    exported = through_a_file(ours.to_torch_state_dict())
    wide = torch.float64 if dtype.get("dtype") == torch.float64 else torch.float32
    params = [p.detach().to(wide).requires_grad_() for p in params_of(ours)]
    theirs = kind.fitting(options).torchs(params)
    run(theirs, range(1))
    (group,) = theirs.state_dict()["param_groups"]
    entries = {name for state in theirs.state.values() for name in state}
    theirs.load_state_dict(exported)
    assert theirs.state_dict()["param_groups"][0].keys() == group.keys()
    for param, state in exported["state"].items():
        assert state.keys() == entries
        assert {v.dtype for name, v in state.items() if name != "step"} == {wide}
        assert all(v.shape == params[param].shape for n, v in state.items() if n != "step")
    run(theirs, range(3, 4))


@every_mode
@every_kind
def test_every_mode_exports_what_the_mode_without_bits_to_save_loads(kind: Kind, mode: str) -> None:
    options, dtype = MODES[mode]
    ours = kind.ours(make_params(*SHAPES, **dtype), **options)
    run(ours, range(3))
    exported = through_a_file(ours.to_torch_state_dict())
    plain = kind.ours([p.detach().float() for p in params_of(ours)])
    plain.load_state_dict(copy.deepcopy(exported))  # torch writes to what it has loaded
    shadow = Shadow(plain)
    set_grads(params_of(plain))
    shadow.step()
    back = kind.ours(copies(params_of(ours)), **options)
    back.load_state_dict(exported)
    for p, q in zip(params_of(ours), params_of(back), strict=True):
        for name, value in back.state[q].items():  # a float32 between codes would be rounded
            if name != "step":
                assert_same_bits(value, ours.state[p][name], name)


def test_codes_of_another_order_of_memory_are_encoded_anew() -> None:
    (values,) = make_params((40, 50))
    plain = fusedstep.AdamW([values], state_dtype="int8", lr=0.1)
    run(plain, range(2))
    turned = laid_out(values.detach(), "reversed").requires_grad_()
    other = fusedstep.AdamW([turned], state_dtype="int8", lr=0.1)
    other.load_state_dict(plain.state_dict())
    set_grads([turned], seed=2)
    exported = plain.to_torch_state_dict()["state"][0]["exp_avg"]
    expected = 0.9 * exported + 0.1 * turned.grad
    other.step()
    assert other.state[turned]["exp_avg"].stride() == turned.stride()
    actual = other.to_torch_state_dict()["state"][0]["exp_avg"]
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.01)


# What is refused

BOTH = {"state_dtype": "int8", "master": "remainder", "ema_decay": 0.9}
Damage = Callable[[dict[str, Any]], Any]


def entry(name: str, change: Callable[[Any], Any]) -> Damage:
    return lambda state: state.update({name: change(state[name])})


def without(name: str) -> Damage:
    return lambda state: state.pop(name)


DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "no scale": (without("exp_avg_scale"), "exp_avg_scale", "be there, as there are codes"),
    "no codes": (without("exp_avg"), "exp_avg", "be there after a step, got None"),
    "short scale": (entry("exp_avg_scale", lambda x: x[1:]), "exp_avg_scale", r"have shape \(3,\)"),
    "wide scale": (entry("exp_avg_scale", Tensor.double), "exp_avg_scale", "be torch.float32, got"),
    "wrong codes": (entry("exp_avg_sq", Tensor.char), "exp_avg_sq", "be torch.uint8"),
    "wide codes": (entry("exp_avg", Tensor.int), "exp_avg", "be torch.int8 or floating-point, got"),
    "float codes": (entry("exp_avg", Tensor.float), "exp_avg_scale", "not be there without codes"),
    "other shape": (entry("exp_avg", lambda x: x[:-1]), "exp_avg", "have its parameter's shape"),
    "other remainder": (entry("remainder", lambda x: x[:-1]), "remainder", "have its parameter's"),
    "wide remainder": (entry("remainder", Tensor.float), "remainder", "be torch.int16, got"),
    "other average": (entry("ema", lambda x: x[:-1]), "ema", "have its parameter's shape"),
    "whole average": (entry("ema", Tensor.long), "ema", "be torch.float32, got torch.int64"),
    "no tensor": (entry("exp_avg", lambda x: [1.0]), "exp_avg", "be a tensor, got list"),
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
    params = make_params((5,), (300,), **BFLOAT16)
    whole = fusedstep.AdamW(params, lr=0.1, **BOTH)
    run(whole, range(2))
    state_dict = copy.deepcopy(whole.state_dict())
    change, name, must = DAMAGES[damage]
    change(state_dict["state"][1])
    names = ("layer.bias", "layer.weight")
    others = list(zip(names, copies(params), strict=True)) if named else copies(params)
    loading = fusedstep.AdamW(others, **BOTH)
    run(loading, range(1))
    label = r"params\['layer.weight'\]" if named else r"params\[1\]"
    refused(loading, state_dict, rf"state of {label}\['{name}'\] must {must}")


OTHER_MODES = {
    "int8": ({"state_dtype": "int8"}, {}, r"\['exp_avg'\] must not be .* state_dtype='int8'"),
    "int8 in bfloat16": (
        {"state_dtype": "int8"}, {"state_dtype": torch.bfloat16}, r"\['exp_avg'\] must not be",
    ),
    "master": ({"master": "float32"}, {}, r"\['master'\] must not be .* master='float32'"),
    "remainder": (
        {"master": "remainder"}, {"master": "float32"}, r"\['remainder'\] must not be there",
    ),
    "average": ({"ema_decay": 0.9}, {}, r"\['ema'\] must not be there without ema_decay"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_MODES)
def test_checkpoints_of_another_mode_are_refused(case: str) -> None:
    saving, loading, message = OTHER_MODES[case]
    params = make_params((300,), **BFLOAT16)
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
