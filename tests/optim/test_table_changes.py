"""Tables follow what users change between steps: parameters, groups, data and state."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch

import fusedstep
from tests.support.optimizers import Kind, every_kind
from tests.support.shadow import Shadow
from tests.support.tensors import (
    LAYOUTS,
    assert_same_bits,
    laid_out,
    make_params,
    name_of,
    set_grads,
)


def test_parameters_added_later() -> None:
    params = make_params((5,), (6,), (7,))
    shadow = Shadow(fusedstep.AdamW(params[:1], lr=0.1))
    for step in range(4):
        if step in (1, 3):
            new = params[1:2] if step == 1 else params[2:]
            shadow.optimizer.add_param_group({"params": new, "lr": 0.01 * step})
        set_grads(params, seed=step)
        shadow.step()
    assert [float(shadow.optimizer.state[p]["step"]) for p in params] == [4.0, 3.0, 1.0]


@every_kind
def test_parameters_taken_out_exchanged_and_regrouped(kind: Kind) -> None:
    a, b, c, d = params = make_params((5,), (6,), (7,), (40_000,))
    groups = [{"params": [a, b], "lr": 0.1}, {"params": [c], "lr": 0.01}]
    shadow = Shadow(kind.ours(groups, max_norm=1.0))
    first, second = shadow.optimizer.param_groups
    listings = [
        ([a, b], [c]),
        ([a], [b, c]),  # the same order, another group
        ([c], [b, a]),  # the same sizes, another group
        ([c], [a, b]),  # the same groups, another order of the norm
        ([d], [a, b]),  # one exchanged for another
        ([], [b]),
        ([a, b, c, d], []),
    ]
    for step, (first["params"], second["params"]) in enumerate(listings):
        set_grads(params, seed=step)
        before = [p.detach().clone() for p in params]
        shadow.step()
        for param, value in zip(params, before, strict=True):
            listed = any(param is p for p in first["params"] + second["params"])
            assert torch.equal(param, value) != listed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("layout", LAYOUTS)
@every_kind
def test_data_of_a_parameter_replaced(kind: Kind, layout: str, dtype: torch.dtype) -> None:
    params = make_params((20, 30), (5,))
    shadow = Shadow(kind.ours(params, max_norm=1.0))
    for step in range(4):
        if step == 2:
            old = params[0].data
            kept = old.clone()
            params[0].grad = None
            params[0].data = laid_out(old.to(dtype, copy=True), layout)
            shadow._take_over(params[0])
        set_grads(params, seed=step)
        shadow.step()
    assert torch.equal(old, kept)  # nothing is written where the parameter was


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_state_replaced_by_the_user(name: str) -> None:
    params = make_params((20, 30), (5,))
    shadow = Shadow(fusedstep.AdamW(params))
    for step in range(4):
        set_grads(params, seed=step)
        if step == 2:
            state = shadow.optimizer.state[params[0]]
            old = state[name]
            kept = old.clone()
            state[name] = old * 3
            shadow._take_over(params[0])
        shadow.step()
    assert torch.equal(old, kept)  # the old state is no longer in use


def test_state_changed_in_place_by_the_user() -> None:
    params = make_params((20,))
    shadow = Shadow(fusedstep.AdamW(params))
    for step in range(3):
        set_grads(params, seed=step)
        if step == 1:
            shadow.optimizer.state[params[0]]["exp_avg"].mul_(2)
            shadow.optimizer.state[params[0]]["step"].fill_(100)
            shadow._take_over(params[0])
        shadow.step()
    assert float(shadow.optimizer.state[params[0]]["step"]) == 102


@every_kind
def test_cleared_state_starts_over(kind: Kind) -> None:
    params = make_params((20,), (5,))
    shadow = Shadow(kind.ours(params))
    for step in range(4):
        set_grads(params, seed=step)
        if step == 2:
            shadow.optimizer.state.clear()
            for param in params:
                shadow._take_over(param)
        shadow.step()
    assert {float(s.get("step", 2)) for s in shadow.optimizer.state.values()} == {2.0}


@every_kind
def test_entry_of_a_parameter_replaced_by_the_user(kind: Kind) -> None:
    params = make_params((20,), (5,))
    shadow = Shadow(kind.ours(params))
    for step in range(4):
        set_grads(params, seed=step)
        if step == 2:
            state = shadow.optimizer.state[params[0]]
            shadow.optimizer.state[params[0]] = {name: value / 2 for name, value in state.items()}
            shadow._take_over(params[0])
        shadow.step()
    counts = [float(s["step"]) for s in map(shadow.optimizer.state.get, params) if "step" in s]
    assert counts == ([] if kind.name == "Lion" else [3.0, 4.0])


def test_state_that_is_lazily_negated_or_no_dictionary() -> None:
    (param,) = make_params((20,))
    shadow = Shadow(fusedstep.AdamW([param]))
    for step in range(4):
        set_grads([param], seed=step)
        if step == 1:
            state = shadow.optimizer.state[param]
            state["exp_avg"] = -state["exp_avg"]
            shadow._take_over(param)
            state["exp_avg"] = torch._neg_view(-state["exp_avg"])  # the same values
        if step == 2:
            shadow.optimizer.state[param] = UserDict(shadow.optimizer.state[param])
        shadow.step()


def test_gradients_that_are_not_what_their_memory_says() -> None:
    """Lazy negations and zeros, in turns with plain ones, against plain gradients alone."""
    params, others = make_params((3, 4), (3, 4)), make_params((3, 4), (3, 4))
    ours, expected = (fusedstep.AdamW(ps, max_norm=1.0) for ps in (params, others))
    for step in range(8):
        set_grads(params, seed=step)
        set_grads(others, seed=step)
        if step % 4 == 1:
            params[1].grad = torch._neg_view(-params[1].grad)
        if step % 4 == 2:
            others[1].grad = torch.zeros(3, 4)
            params[1].grad = torch._efficientzerotensor((3, 4))
        ours.step()
        expected.step()
        for param, other in zip(params, others, strict=True):
            assert_same_bits(param, other, f"step {step}")


REARRANGED = {
    "data": lambda x: setattr(x, "data", x.data.view(30, 20).t()),
    "set_": lambda x: x.set_(x.untyped_storage(), 0, (20, 30), (1, 20)),
    "moved by set_": lambda x: x.set_(x.clone().untyped_storage(), 0, (20, 30), (30, 1)),
}


@pytest.mark.parametrize("rearrange", REARRANGED)
@pytest.mark.parametrize("of", ["parameter", "exp_avg"])
def test_elements_rearranged_in_the_same_memory(of: str, rearrange: str) -> None:
    """The same object, at the same address but for the last, with other strides."""
    params = make_params((20, 30), (5,))
    shadow = Shadow(fusedstep.AdamW(params))
    for step in range(4):
        set_grads(params, seed=step)
        if step == 2:
            x = params[0] if of == "parameter" else shadow.optimizer.state[params[0]]["exp_avg"]
            with torch.no_grad():
                REARRANGED[rearrange](x)
            shadow._take_over(params[0])
        shadow.step()


@pytest.mark.parametrize("name", ["exp_avg", "step"])
def test_resized_state_is_refused_until_it_is_mended(name: str) -> None:
    params = make_params((20,))
    optimizer = fusedstep.AdamW(params)
    set_grads(params)
    optimizer.step()
    state = optimizer.state[params[0]]
    size = tuple(state[name].shape)
    state[name].resize_(5)
    before = params[0].detach().clone()
    with pytest.raises((ValueError, RuntimeError)):
        optimizer.step()
    assert torch.equal(params[0], before)
    state[name].resize_(size)
    optimizer.step()


def test_amsgrad_switched_on_later() -> None:
    params = make_params((20,))
    shadow = Shadow(fusedstep.AdamW(params))
    for step in range(4):
        set_grads(params, seed=step)
        shadow.optimizer.param_groups[0]["amsgrad"] = step >= 2
        shadow.step()
    assert "max_exp_avg_sq" in shadow.optimizer.state[params[0]]
