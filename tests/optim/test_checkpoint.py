"""Checkpoints of every dtype and mode: continued bit for bit, exchanged with torch, not rounded."""

from __future__ import annotations

import copy
import io
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import fusedstep
from tests.support.modes import MODES, every_kind_and_mode, every_namesake_and_mode, modes_of
from tests.support.optimizers import (
    OPTIMIZERS,
    Kind,
    assert_same_run,
    every_kind,
    every_namesake,
    params_of,
)
from tests.support.shadow import Shadow
from tests.support.tensors import (
    DTYPES,
    assert_same_bits,
    copies,
    laid_out,
    make_params,
    name_of,
    set_grads,
)

HALVES = (torch.bfloat16, torch.float16)
SHAPES = [(300,), (), (0,), (4, 5)]


def run(optimizer: Optimizer, steps: range, grad_dtype: torch.dtype | None = None) -> None:
    """Steps with gradients that depend on the number of the step alone."""
    for step in steps:
        set_grads(params_of(optimizer), seed=step, dtype=grad_dtype)
        optimizer.step()


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def loading(kind: Kind, params: list[Tensor], **options: Any) -> Optimizer:
    """A fused optimizer of copies of these, with default hyperparameters: a checkpoint has them."""
    return getattr(fusedstep, kind.name)(copies(params), **options)


# Options, and the parameters' dtype where it is not float32.
PLAIN = {name_of(dtype): ({}, {"dtype": dtype}) for dtype in DTYPES}
EVERY = [(kind, mode) for kind in OPTIMIZERS for mode in (*PLAIN, *modes_of(kind))]


@pytest.mark.parametrize(
    ("kind", "mode"), [pytest.param(k, mode, id=f"{k.name}, {mode}") for k, mode in EVERY]
)
def test_saved_and_loaded_run_continues_bit_for_bit(kind: Kind, mode: str) -> None:
    options, dtype = (PLAIN | MODES)[mode]
    whole = kind.ours(make_params(*SHAPES, **dtype), max_norm=1.0, **options)
    run(whole, range(3), grad_dtype=torch.float32)
    other = loading(kind, params_of(whole), max_norm=1.0, **options)
    other.load_state_dict(through_a_file(whole.state_dict()))
    assert other.param_groups[0]["lr"] == kind.options["lr"]
    for p, q in zip(params_of(whole), params_of(other), strict=True):
        for name, value in whole.state[p].items():
            assert_same_bits(other.state[q][name], value, name)
            if mode in ("bfloat16", "float16") and name != "step" and value.numel() > 1:
                assert value.dtype == torch.float32
                assert not torch.equal(value, value.to(p.dtype).float())  # rounding would show
    run(whole, range(3, 6))
    run(other, range(3, 6))
    if any(whole.state.values()):
        assert_same_run(other, whole)


IMPLEMENTATIONS = [{"foreach": True}, {"fused": True}, {"foreach": False}]


def of_torch(
    kind: Kind, params: list[Tensor], chosen: dict[str, bool], **options: Any
) -> Optimizer:
    """Torch's namesake with this implementation; RMSprop has no fused one."""
    their_class = getattr(torch.optim, kind.name)
    if "fused" in chosen and "fused" not in signature(their_class).parameters:
        chosen = {}
    return their_class(params, **options | chosen)


@pytest.mark.parametrize("theirs", IMPLEMENTATIONS, ids=str)
@every_namesake
def test_torch_continues_our_run(kind: Kind, theirs: dict[str, bool]) -> None:
    params = make_params((300,), (4, 5))
    ours = kind.ours(params)
    run(ours, range(3))
    torchs = of_torch(kind, copies(params), theirs)
    torchs.load_state_dict(through_a_file(ours.state_dict()))
    run(ours, range(3, 6))
    run(torchs, range(3, 6))
    assert_close_runs(ours, torchs)


@pytest.mark.parametrize("theirs", IMPLEMENTATIONS, ids=str)
@every_namesake
def test_we_continue_a_run_of_torch(kind: Kind, theirs: dict[str, bool]) -> None:
    params = make_params((300,), (4, 5))
    torchs = of_torch(kind, params, theirs, **kind.options)
    run(torchs, range(3))
    ours = loading(kind, params, max_norm=1e9)
    ours.load_state_dict(through_a_file(torchs.state_dict()))
    (group,) = ours.param_groups
    assert (group["lr"], group["foreach"]) == (kind.options["lr"], None)
    assert group.get("fused", True) is True
    shadow = Shadow(ours)
    for step in range(3, 6):
        set_grads(group["params"], seed=step)
        shadow.step()  # the kernels ran, with the state and step counts of the checkpoint
    run(torchs, range(3, 6))
    assert_close_runs(ours, torchs)


def assert_close_runs(ours: Optimizer, theirs: Optimizer) -> None:
    """Parameters and state are close; SGD's count is ours alone, torch keeps what it was given."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q)
        for name, value in ours.state[p].items():
            if not (name == "step" and isinstance(theirs, torch.optim.SGD)):
                torch.testing.assert_close(value, theirs.state[q][name])


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
@every_namesake
def test_state_that_torch_kept_in_half_precision_is_widened(kind: Kind, dtype: torch.dtype) -> None:
    params = make_params((300,), dtype=dtype)
    theirs = kind.torchs(params, foreach=True)
    run(theirs, range(2))
    ours = loading(kind, params)
    ours.load_state_dict(theirs.state_dict())
    shadow = Shadow(ours)
    set_grads(params_of(ours), seed=2)
    shadow.step()
    (state,) = ours.state.values()
    assert {value.dtype for value in state.values()} == {torch.float32}


@every_kind
def test_loading_into_an_optimizer_that_has_stepped(kind: Kind) -> None:
    params = make_params((300,), (7,))
    optimizer = kind.ours(params, max_norm=1.0)
    run(optimizer, range(2))
    values = [p.detach().clone() for p in params]
    checkpoint = copy.deepcopy(optimizer.state_dict())
    before = dict(optimizer.state[params[0]])
    run(optimizer, range(2, 5))
    expected = [p.detach().clone() for p in params]
    replaced = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)
    optimizer.load_state_dict(checkpoint)
    run(optimizer, range(2, 5))
    assert all(map(torch.equal, params, expected))
    for name, value in before.items():  # state that is no longer in use is not written to
        assert_same_bits(value, replaced[name], name)


@every_namesake_and_mode
def test_a_checkpoint_of_torch_loads_into_every_mode(kind: Kind, mode: str) -> None:
    options, dtype = MODES[mode]
    params = make_params(*SHAPES)
    theirs = kind.fitting(options).torchs(params)
    run(theirs, range(3))
    ours = getattr(fusedstep, kind.name)([p.detach().to(**dtype) for p in params], **options)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    for p, q in zip(params_of(ours), params, strict=True):
        for name, value in ours.to_torch_state_dict()["state"][index_of(ours, p)].items():
            # An eighth: the widest gap between two codes, as a part of what lies between them.
            close = {"rtol": 0.13, "atol": float(value.abs().max() if value.numel() else 0) * 1e-2}
            expected = theirs.state[q][name].to(value.dtype)
            torch.testing.assert_close(value, expected, **close if name != "step" else {})
    shadow = Shadow(ours)
    for step in range(3, 5):
        set_grads(params_of(ours), seed=step)
        shadow.step()  # the kernels ran, with the state and step counts of the checkpoint


def index_of(optimizer: Optimizer, param: Tensor) -> int:
    return next(i for i, p in enumerate(params_of(optimizer)) if p is param)


@every_namesake_and_mode
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


@every_kind_and_mode
def test_every_mode_exports_what_the_plain_one_loads(kind: Kind, mode: str) -> None:
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


def test_codes_are_encoded_again_for_another_order_of_memory() -> None:
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


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=name_of)
def test_step_counts_go_beyond_256(dtype: torch.dtype) -> None:
    params = make_params((3,), dtype=dtype)
    optimizer = fusedstep.AdamW(params)
    set_grads(params)
    for _ in range(300):
        optimizer.step()
    state_dict = through_a_file(optimizer.state_dict())
    optimizer = fusedstep.AdamW(params)
    optimizer.load_state_dict(state_dict)
    optimizer.step()
    assert float(optimizer.state[params[0]]["step"]) == 301


def test_copy_of_an_optimizer_of_torch_that_was_asked_for() -> None:
    params = make_params((5,))
    optimizer = copy.deepcopy(fusedstep.AdamW(params, foreach=True))
    run(optimizer, range(1))
    assert optimizer.param_groups[0]["foreach"] is True
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"].item() == 1


def test_hooks_of_load_state_dict_see_and_change_the_checkpoint() -> None:
    params = make_params((5,), dtype=torch.bfloat16)
    saved = fusedstep.AdamW(params)
    run(saved, range(2))
    loaded = fusedstep.AdamW(copies(params))
    calls: list[str] = []

    def halve(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        calls.append("pre")
        state = {0: {**state_dict["state"][0], "exp_avg": state_dict["state"][0]["exp_avg"] / 2}}
        return {**state_dict, "state": state}

    loaded.register_load_state_dict_pre_hook(halve)
    loaded.register_load_state_dict_post_hook(lambda _: calls.append("post"))
    loaded.load_state_dict(saved.state_dict())
    assert calls == ["pre", "post"]
    (state,), (expected,) = loaded.state.values(), saved.state.values()
    assert_same_bits(state["exp_avg"], expected["exp_avg"] / 2, "exp_avg")


def test_post_hooks_have_the_last_word_on_half_precision_state() -> None:
    params = make_params((6,), dtype=torch.bfloat16)
    saved = fusedstep.AdamW(params)
    set_grads(params)
    saved.step()
    loaded = fusedstep.AdamW(params)

    def clear(optimizer: torch.optim.Optimizer) -> None:
        optimizer.state[params[0]]["exp_avg"].zero_()

    loaded.register_load_state_dict_post_hook(clear)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.state[params[0]]["exp_avg"].dtype == torch.float32
    assert not loaded.state[params[0]]["exp_avg"].any()
    assert saved.state[params[0]]["exp_avg"].any()


@every_kind_and_mode
def test_nothing_is_shared_after_a_load(kind: Kind, mode: str) -> None:
    """An optimizer whose state_dict() was loaded is not changed by steps of the other."""
    options, dtype = MODES[mode]
    params = make_params(*SHAPES, **dtype)
    first = kind.ours(params, **options)
    run(first, range(2))
    second = loading(kind, params, **options)
    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(first.state_dict())
    run(second, range(2, 4))
    after = first.state_dict()["state"]
    for i, entries in before["state"].items():
        for name, value in entries.items():
            assert_same_bits(after[i][name], value, f"{name} of params[{i}]")
    run(first, range(2, 4))
    assert_same_run(first, second)


def test_tensors_of_the_user_in_the_state_are_left_alone() -> None:
    """Also such as look like 8-bit codes or scales."""
    params = make_params((300,), (4, 5))
    optimizer = fusedstep.AdamW(params)
    run(optimizer, range(1))
    own = {
        "mask": torch.arange(300, dtype=torch.uint8), "codes": torch.ones(300, dtype=torch.int8),
        "mask_scale": torch.rand(7, dtype=torch.float64), "history": [1, 2],
    }  # fmt: skip
    optimizer.state[params[0]] |= own
    second = fusedstep.AdamW(copies(params))
    second.load_state_dict(through_a_file(optimizer.state_dict()))
    for one in (optimizer, second):
        run(one, range(1, 3))
        for name, value in own.items():
            kept = one.state[params_of(one)[0]][name]
            assert torch.equal(kept, value) if isinstance(value, Tensor) else kept == value
            assert not isinstance(value, Tensor) or kept.dtype == value.dtype
        assert one.to_torch_state_dict()["state"][0].keys() >= own.keys()
    for p, q in zip(params_of(optimizer), params_of(second), strict=True):
        assert_same_bits(p, q)


def test_a_remainder_is_saved_as_its_bytes_and_loaded_from_any_form() -> None:
    """All 65536 of them; in other orders of memory; as older and flattened checkpoints have it."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for order in (bits.view(256, 256), bits.view(256, 256).T):
        param = torch.zeros_like(order, dtype=torch.bfloat16).requires_grad_()
        optimizer = fusedstep.SGD([param], master="remainder")
        optimizer.state[param]["remainder"] = order.clone()
        # What a user's hook sees is what is returned.
        optimizer.register_state_dict_post_hook(lambda _, final: final | {"seen": final["state"]})
        saved = optimizer.state_dict()
        entries = saved["seen"][0]
        assert entries.keys() == saved["state"][0].keys() == {"remainder.high", "remainder.low"}
        assert optimizer.state[param].keys() == {"remainder"}
        high, low = entries.values()
        assert high.dtype == low.dtype == torch.uint8
        assert torch.equal(high.int() * 256 + low, order.int() % 2**16)
        for form in (
            entries,
            {"remainder": {"high": high, "low": low}},
            {"remainder": order},
            {"remainder": order.float()},
        ):
            twin = torch.zeros_like(param).requires_grad_()
            loading = fusedstep.SGD([twin], master="remainder")
            loading.load_state_dict(saved | {"state": {0: form}})
            assert_same_bits(loading.state[twin]["remainder"], order)
            assert loading.state[twin]["remainder"].stride() == order.stride()


@pytest.mark.parametrize("shape", [(6, 256), (300,), (8, 4, 4, 8)], ids=str)
@pytest.mark.parametrize("layout", ["plain", "reversed"])
def test_codes_are_loaded_from_any_form(shape: tuple[int, ...], layout: str) -> None:
    """As checkpoints have them, as older ones had them, and without their order of memory."""
    params = [laid_out(p.detach(), layout).requires_grad_() for p in make_params(shape)]
    optimizer = fusedstep.AdamW(params, state_dtype="int8")
    run(optimizer, range(3))
    (state,), (saved,) = optimizer.state.values(), optimizer.state_dict()["state"].values()
    in_rows = len(shape) > 1 and params[0].is_contiguous()
    names = {"step", "exp_avg", "exp_avg_sq"}
    if in_rows:
        names = {f"exp_avg{k}{part}" for k in ("", "_sq") for part in (".codes", "_scale")} | {
            "step"
        }
    assert saved.keys() == names
    older = {n: v.reshape(-1) if n.endswith("scale") else v for n, v in state.items()}
    flattened = {n: v for n, v in saved.items() if "." not in n}
    for name in names - flattened.keys():
        flattened[name.removesuffix(".codes")] = {"codes": saved[name]}
    nothing = {n: {} for n in state if n not in flattened}
    for form in (saved, older, flattened | nothing, {n: v.contiguous() for n, v in saved.items()}):
        twin = torch.empty_like(params[0]).copy_(params[0].detach()).requires_grad_()
        loading = fusedstep.AdamW([twin], state_dtype="int8")
        loading.load_state_dict(optimizer.state_dict() | {"state": {0: form}})
        for name, value in state.items():
            assert_same_bits(loading.state[twin][name], value, name)
        assert loading.state_dict()["state"][0].keys() == names
        assert loading.state[twin]["exp_avg"].stride() == twin.stride()


def test_checkpoints_put_directly_into_the_state() -> None:
    """As ZeroRedundancyOptimizer does."""
    params = make_params((300,), dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master="remainder")
    run(optimizer, range(2))
    twins = copies(params)
    loading = fusedstep.AdamW(twins, master="remainder")
    loading.state[twins[0]] = copy.deepcopy(optimizer.state_dict()["state"][0])
    for one in (optimizer, loading):
        run(one, range(2, 3))
    assert_same_run(loading, optimizer)
