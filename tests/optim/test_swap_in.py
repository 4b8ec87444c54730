"""torch.optim.swap_in_optimizer_params_and_state: steps on other tensors, and back to one's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

import fusedstep
from tests.support.modes import MODES, every_class_and_mode
from tests.support.optimizers import OPTIMIZERS, Kind, assert_same_run, every_class, params_of
from tests.support.tensors import assert_same_bits, make_params, set_grads

if not hasattr(torch.optim, "swap_in_optimizer_params_and_state"):
    pytest.skip(
        "needs torch.optim.swap_in_optimizer_params_and_state, new in torch 2.14",
        allow_module_level=True,
    )

from torch.optim import swap_in_optimizer_params_and_state

SHAPES = [(20, 30), (3, 140), (5, 5)]


def trained(kind: Kind, mode: str) -> Optimizer:
    """After two steps; the last parameter has had no gradient."""
    options, dtype = MODES.get(mode, ({}, {}))
    params = make_params(*SHAPES, **dtype)
    optimizer = kind.ours(params, max_norm=1.0, **options)
    for seed in range(2):
        step(optimizer, seed, params[:2])
    return optimizer


def step(optimizer: Optimizer, seed: int, with_grad: list[Tensor] | None = None) -> None:
    params = params_of(optimizer)
    optimizer.zero_grad()
    set_grads(params if with_grad is None else with_grad, seed=seed)
    optimizer.step()


def others(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copies of the parameters and of the state, to be swapped in."""
    params = (param.detach().clone().requires_grad_() for param in params_of(optimizer))
    return {str(i): p for i, p in enumerate(params)}, copy.deepcopy(optimizer.state_dict())


def assert_same_tensors(optimizer: Optimizer, expected: Optimizer) -> None:
    """Parameters and state; one that never had a gradient may have none or an empty one."""
    for p, q in zip(params_of(optimizer), params_of(expected), strict=True):
        assert_same_bits(p, q, "a parameter")
        state = optimizer.state.get(p, {})
        assert state.keys() == expected.state.get(q, {}).keys()
        for name, value in state.items():
            assert_same_bits(value, expected.state[q][name], name)


@every_class_and_mode
def test_steps_on_other_tensors_are_those_of_a_copy(kind: Kind, mode: str) -> None:
    optimizer = trained(kind, mode)
    untouched, stepped = copy.deepcopy(optimizer), copy.deepcopy(optimizer)
    params, state_dict = others(optimizer)
    own, groups, state = params_of(optimizer), optimizer.param_groups[0]["params"], optimizer.state
    for seeds in ((2, 3), (4,)):  # the second block goes on where the first one ended
        with swap_in_optimizer_params_and_state(optimizer, params, state_dict):
            for seed in seeds:
                step(optimizer, seed, None if seed == 3 else list(params.values())[:2])
                step(stepped, seed, None if seed == 3 else params_of(stepped)[:2])
                assert_same_tensors(optimizer, stepped)
                assert_same_bits(optimizer.grad_norm, stepped.grad_norm, "grad_norm")
            # What a step made anew is dropped at the end, as torch documents.
            state_dict = copy.deepcopy(optimizer.state_dict())
        assert optimizer.state is state
        assert optimizer.param_groups[0]["params"] is groups
        assert all(p is q for p, q in zip(params_of(optimizer), own, strict=True))
        assert_same_tensors(optimizer, untouched)
    for one in (optimizer, untouched):
        step(one, 5)
    assert_same_run(optimizer, untouched)


@every_class
def test_state_that_is_swapped_in_is_written(kind: Kind) -> None:
    """In place, as with torch's optimizers."""
    optimizer = trained(kind, "int8 state, average" if kind.name == "Lion" else "average")
    params, state_dict = others(optimizer)
    before = copy.deepcopy(state_dict["state"])
    with swap_in_optimizer_params_and_state(optimizer, params, state_dict):
        step(optimizer, 2, list(params.values())[:2])
        inside = [optimizer.state[param] for param in params.values()][:2]
        for i, entries in enumerate(inside):
            assert entries
            for name, value in entries.items():
                assert value is state_dict["state"][i][name]
                assert not torch.equal(value, before[i][name])


def test_hyperparameters_of_the_block_end_with_it() -> None:
    optimizer = trained(OPTIMIZERS[0], "plain")
    slow, fast = (copy.deepcopy(optimizer) for _ in range(2))
    fast.param_groups[0]["lr"] = 0.5
    params, state_dict = others(optimizer)
    state_dict["param_groups"][0]["lr"] = 0.5
    with swap_in_optimizer_params_and_state(optimizer, params, state_dict):
        step(optimizer, 2)
        step(fast, 2)
        assert_same_tensors(optimizer, fast)
    step(optimizer, 2)
    step(slow, 2)
    assert_same_run(optimizer, slow)


def fake(optimizer: Optimizer) -> tuple[FakeTensorMode, dict[str, Tensor], dict[str, Any]]:
    """Parameters with gradients, and state, without values."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    params, state_dict = others(optimizer)
    with mode:
        fakes = {name: mode.from_tensor(param) for name, param in params.items()}
        for param in fakes.values():
            param.grad = torch.ones_like(param)
        return mode, fakes, tree_map_only(Tensor, mode.from_tensor, state_dict)


@every_class
def test_fake_tensors_are_stepped_and_leave_nothing(kind: Kind) -> None:
    optimizer = trained(kind, "int8 state")
    untouched = copy.deepcopy(optimizer)
    mode, params, state_dict = fake(optimizer)
    with mode, swap_in_optimizer_params_and_state(optimizer, params, state_dict):
        optimizer.step()
        entries = [value for param in params.values() for value in optimizer.state[param].values()]
        assert entries
        assert all(isinstance(value, FakeTensor) for value in entries)
    assert_same_tensors(optimizer, untouched)
    for one in (optimizer, untouched):
        step(one, 2)
    assert_same_run(optimizer, untouched)


@every_class
def test_no_graph_records_a_step(kind: Kind) -> None:
    """It would hold addresses: of the tables, which may go, and of tensors."""
    optimizer = trained(kind, "plain")
    untouched = copy.deepcopy(optimizer)
    _, params, state_dict = fake(optimizer)

    def traced(params: dict[str, Tensor], state_dict: dict[str, Any]) -> Any:
        with swap_in_optimizer_params_and_state(optimizer, params, state_dict):
            optimizer.step()
        return params, state_dict

    message = rf"^{kind.name}: step\(\) must not be traced, .*, got ProxyTorchDispatchMode$"
    with pytest.raises(RuntimeError, match=message):
        make_fx(traced)(params, state_dict)
    assert_same_tensors(optimizer, untouched)
    for one in (optimizer, untouched):
        step(one, 2)
    assert_same_run(optimizer, untouched)


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_no_graph_records_a_step_on_the_optimizers_own_tensors(
    tracing: str, pre_dispatch: bool
) -> None:
    optimizer = trained(OPTIMIZERS[0], "plain")
    before = copy.deepcopy(optimizer)

    def traced(scale: Tensor) -> Tensor:
        optimizer.step()
        return scale

    with pytest.raises(RuntimeError, match=r"^AdamW: step\(\) must not be traced"):
        make_fx(traced, tracing_mode=tracing, pre_dispatch=pre_dispatch)(torch.ones(()))
    assert_same_tensors(optimizer, before)


def test_torchs_own_step_is_recorded() -> None:
    """What a class with fused=False leaves to torch."""
    param = nn.Parameter(torch.ones(3))
    optimizer = fusedstep.SGD([param], lr=0.5, momentum=0.9, fused=False)
    param.grad = torch.ones(3)
    optimizer.step()
    _, params, state_dict = fake(optimizer)

    def traced(params: dict[str, Tensor], state_dict: dict[str, Any]) -> Any:
        with swap_in_optimizer_params_and_state(optimizer, params, state_dict):
            optimizer.step()
        return params, state_dict

    graph = make_fx(traced)(params, state_dict)
    assert any("add_" in str(node.target) for node in graph.graph.nodes)
    assert torch.equal(param, torch.full((3,), 0.5))
