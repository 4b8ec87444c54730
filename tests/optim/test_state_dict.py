"""Checkpoints: to and from torch.optim, continued bit for bit, never rounded."""

from __future__ import annotations

import copy
import io
import pickle
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import fusedstep
from tests.support.optimizers import Kind, assert_same_run, every_kind, every_namesake, params_of
from tests.support.shadow import Shadow
from tests.support.tensors import assert_same_bits, copies, make_params, name_of, set_grads

HALVES = (torch.bfloat16, torch.float16)


def run(optimizer: Optimizer, steps: range) -> None:
    """Steps with gradients that depend on the number of the step alone."""
    for step in steps:
        set_grads(params_of(optimizer), seed=step)
        optimizer.step()


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def loading(kind: Kind, params: list[Tensor], **options: Any) -> Optimizer:
    """A fused optimizer of copies of these, with default hyperparameters: a checkpoint has them."""
    return getattr(fusedstep, kind.name)(copies(params), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=name_of)
@every_kind
def test_saved_and_loaded_run_continues_bit_for_bit(kind: Kind, dtype: torch.dtype) -> None:
    params = make_params((300,), (), (0,), (4, 5), dtype=dtype)
    whole = kind.ours(params, max_norm=1.0)
    run(whole, range(3))
    other = loading(kind, params, max_norm=1.0)
    other.load_state_dict(through_a_file(whole.state_dict()))
    assert other.param_groups[0]["lr"] == kind.options["lr"]
    run(whole, range(3, 6))
    run(other, range(3, 6))
    assert_same_run(whole, other)


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
@every_kind
def test_load_state_dict_keeps_float32_state(kind: Kind, dtype: torch.dtype) -> None:
    params = make_params((300,), dtype=dtype)
    saved = kind.ours(params)
    set_grads(params, dtype=torch.float32)
    saved.step()
    loaded = loading(kind, params)
    loaded.load_state_dict(saved.state_dict())
    assert_same_run(loaded, saved)
    (state,) = loaded.state.values()
    assert {value.dtype for value in state.values()} == {torch.float32}
    value = next(value for name, value in state.items() if name != "step")
    assert not torch.equal(value, value.to(dtype).float())  # it would matter


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
def test_steps_given_as_numbers(kind: Kind) -> None:
    params = make_params((5,))
    optimizer = kind.ours(params)
    run(optimizer, range(2))
    state_dict = copy.deepcopy(optimizer.state_dict())
    for state in state_dict["state"].values():
        state.update({"step": 2.0} if "step" in state else {})  # as old checkpoints have it
    loaded = loading(kind, params)
    loaded.load_state_dict(state_dict)
    for one in (optimizer, loaded):
        run(one, range(2, 4))
    assert_same_run(optimizer, loaded)


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
