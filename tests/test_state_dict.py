"""Checkpoints: to and from torch.optim.AdamW, continued bit for bit, never rounded."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from helpers import assert_same_bits, copies, make_params, name_of, set_grads
from torch import Tensor
from twin import Twin

import fusedstep

HALVES = (torch.bfloat16, torch.float16)


def run(optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps with gradients that depend on the number of the step alone."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        set_grads(params, seed=step)
        optimizer.step()


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_run(a: fusedstep.AdamW, b: fusedstep.AdamW) -> None:
    """Parameters and state of both are the same, bit for bit."""
    for group_a, group_b in zip(a.param_groups, b.param_groups, strict=True):
        for p, q in zip(group_a["params"], group_b["params"], strict=True):
            assert_same_bits(p, q, "parameter")
            assert a.state[p].keys() == b.state[q].keys()
            for name, value in a.state[p].items():
                assert_same_bits(value, b.state[q][name], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=name_of)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_saved_and_loaded_run_continues_bit_for_bit(amsgrad: bool, dtype: torch.dtype) -> None:
    params = make_params((300,), (), (0,), (4, 5), dtype=dtype)
    whole = fusedstep.AdamW(params, lr=0.01, amsgrad=amsgrad, max_norm=1.0)
    run(whole, range(3))
    other = fusedstep.AdamW(copies(params), max_norm=1.0)
    other.load_state_dict(through_a_file(whole.state_dict()))
    assert other.param_groups[0]["lr"] == 0.01
    run(whole, range(3, 6))
    run(other, range(3, 6))
    assert_same_run(whole, other)


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_load_state_dict_keeps_float32_moments(dtype: torch.dtype) -> None:
    params = make_params((300,), dtype=dtype)
    saved = fusedstep.AdamW(params)
    set_grads(params, dtype=torch.float32)
    saved.step()
    loaded = fusedstep.AdamW(copies(params))
    loaded.load_state_dict(saved.state_dict())
    assert_same_run(loaded, saved)
    (state,) = loaded.state.values()
    assert state["exp_avg"].dtype == torch.float32
    assert not torch.equal(state["exp_avg"], state["exp_avg"].to(dtype).float())  # it would matter


@pytest.mark.parametrize("theirs", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_torch_continues_our_run(theirs: dict[str, bool]) -> None:
    params = make_params((300,), (4, 5))
    ours = fusedstep.AdamW(params, lr=0.01, amsgrad=True)
    run(ours, range(3))
    torchs = torch.optim.AdamW(copies(params), **theirs)
    torchs.load_state_dict(through_a_file(ours.state_dict()))
    run(ours, range(3, 6))
    run(torchs, range(3, 6))
    assert_close_runs(ours, torchs)


@pytest.mark.parametrize("theirs", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_we_continue_a_run_of_torch(theirs: dict[str, bool]) -> None:
    params = make_params((300,), (4, 5))
    torchs = torch.optim.AdamW(params, lr=0.01, amsgrad=True, **theirs)
    run(torchs, range(3))
    twins = copies(params)
    ours = fusedstep.AdamW(twins, max_norm=1e9)
    ours.load_state_dict(through_a_file(torchs.state_dict()))
    (group,) = ours.param_groups
    assert (group["lr"], group["fused"], group["foreach"]) == (0.01, True, None)
    shadow = Twin(ours)
    for step in range(3, 6):
        set_grads(twins, seed=step)
        shadow.step()  # the kernels ran, with the moments and step counts of the checkpoint
    run(torchs, range(3, 6))
    assert_close_runs(ours, torchs)


def assert_close_runs(ours: fusedstep.AdamW, theirs: torch.optim.AdamW) -> None:
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q)
        for name in ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            torch.testing.assert_close(ours.state[p][name], theirs.state[q][name])


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_moments_that_torch_kept_in_half_precision_are_widened(dtype: torch.dtype) -> None:
    params = make_params((300,), dtype=dtype)
    theirs = torch.optim.AdamW(params, foreach=True)
    run(theirs, range(2))
    twins = copies(params)
    ours = fusedstep.AdamW(twins)
    ours.load_state_dict(theirs.state_dict())
    run(ours, range(2, 3))
    state = ours.state[twins[0]]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
    assert float(state["step"]) == 3


def test_steps_given_as_numbers() -> None:
    params = make_params((5,))
    optimizer = fusedstep.AdamW(params)
    run(optimizer, range(2))
    state_dict = copy.deepcopy(optimizer.state_dict())
    for state in state_dict["state"].values():
        state["step"] = 2.0  # as old checkpoints have it
    loaded = fusedstep.AdamW(copies(params))
    loaded.load_state_dict(state_dict)
    for one in (optimizer, loaded):
        run(one, range(2, 4))
    assert_same_run(optimizer, loaded)


def test_loading_into_an_optimizer_that_has_stepped() -> None:
    params = make_params((300,), (7,))
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    run(optimizer, range(2))
    values = [p.detach().clone() for p in params]
    checkpoint = copy.deepcopy(optimizer.state_dict())
    before = {name: optimizer.state[params[0]][name] for name in ("exp_avg", "step")}
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


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("stepped", [False, True])
def test_copies_go_their_own_way(duplicate: Any, stepped: bool) -> None:
    params = make_params((300,), (2, 2))
    optimizer = fusedstep.AdamW(params, lr=0.1, max_norm=0.5, norm_type=1, nonfinite="skip")
    if stepped:
        run(optimizer, range(2))
    set_grads(params)
    other = duplicate(optimizer)
    assert (other.max_norm, other.norm_type, other.nonfinite) == (0.5, 1.0, "skip")
    unchanged = [p.detach().clone() for p in params]
    run(other, range(2, 4))
    assert all(map(torch.equal, params, unchanged))
    run(optimizer, range(2, 4))
    assert_same_run(optimizer, other)


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


def test_refused_checkpoint_changes_nothing() -> None:
    params = make_params((5,), (3,))
    optimizer = fusedstep.AdamW(params)
    run(optimizer, range(2))
    other = fusedstep.AdamW(make_params((5,)))
    run(other, range(1))
    before: list[Tensor] = [v.clone() for s in optimizer.state.values() for v in s.values()]
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(other.state_dict())
    after = [v for s in optimizer.state.values() for v in s.values()]
    assert all(map(torch.equal, after, before))
    run(optimizer, range(2, 3))
    assert float(optimizer.state[params[0]]["step"]) == 3


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
