"""What a table does not hold: memory of state that was left, parameters that were exchanged."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer

import fusedstep
from tests.support.optimizers import Kind, every_kind
from tests.support.shadow import Shadow
from tests.support.tensors import (
    assert_same_bits,
    make_params,
    set_grads,
)


def storages(optimizer: Optimizer) -> list[StorageWeakRef]:
    """The memory of the whole state."""
    states = optimizer.state.values()
    return [StorageWeakRef(v.untyped_storage()) for state in states for v in state.values()]


def move_out(optimizer: Optimizer) -> None:
    for state in optimizer.state.values():
        for value in state.values():
            value.data = value.data.clone()


def replace(optimizer: Optimizer) -> None:
    for state in optimizer.state.values():
        for name, value in state.items():
            state[name] = value.clone()


LEAVE = {
    "cleared": lambda optimizer: optimizer.state.clear(),
    "exchanged": lambda optimizer: optimizer.__dict__.update(state=defaultdict(dict)),
    "entries replaced": replace,
    "moved in place": move_out,
    "reloaded": lambda optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
}


@pytest.mark.parametrize("leave", LEAVE)
@pytest.mark.parametrize("options", [{}, {"state_dtype": "int8", "ema_decay": 0.5}], ids=["", "8"])
@every_kind
def test_memory_of_state_that_is_left_is_free_at_once(
    kind: Kind, options: dict[str, Any], leave: str
) -> None:
    params = make_params((20, 30), (5,))
    shadow = Shadow(kind.ours(params, **options))
    set_grads(params)
    shadow.step()
    params[1].grad = None  # its average goes on by itself
    shadow.step()
    old = storages(shadow.optimizer)
    assert old
    assert not any(storage.expired() for storage in old)
    LEAVE[leave](shadow.optimizer)
    assert all(storage.expired() for storage in old)
    for param in params:
        shadow._take_over(param)
    set_grads(params, seed=1)
    shadow.step()


@every_kind
def test_parameters_swapped_for_others(kind: Kind) -> None:
    """torch.utils.swap_tensors refuses tensors that anybody else refers to."""
    params = make_params((20, 30), (5,))
    shadow = Shadow(kind.ours(params, ema_decay=0.5))
    for step in range(3):
        set_grads(params, seed=step)
        if step:
            for param in params:
                other = torch.nn.Parameter(param.detach() * 2)
                other.grad = param.grad
                torch.utils.swap_tensors(param, other)
                shadow._take_over(param)
        shadow.step()


@pytest.mark.parametrize("change", ["to float64", "to bfloat16", "load_state_dict", "assign"])
def test_modules_that_swap_their_parameters(change: str) -> None:
    """The same bits with torch.__future__.set_swap_module_params_on_conversion(True)."""
    parameters = []
    for swap in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(20, 30)
        optimizer = fusedstep.AdamW(model.parameters(), lr=0.1)
        torch.__future__.set_swap_module_params_on_conversion(swap)
        try:
            for step in range(3):
                if step == 1 and change.startswith("to "):
                    model.to(getattr(torch, change[3:]))
                elif step == 1:
                    values = {name: value * 2 for name, value in model.state_dict().items()}
                    model.load_state_dict(values, assign=change == "assign" and swap)
                x = torch.ones(3, 20, dtype=model.weight.dtype)
                model(x).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        parameters.append([p.detach() for p in model.parameters()])
    for p, q in zip(*parameters, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize("name", ["second_momentum_buffer", "momentum_buffer"])
def test_state_whose_memory_moves(name: str) -> None:
    """As when it is offloaded between steps and fetched: the former memory is not written."""
    (moved,), (stayed,) = params = [make_params((8, 16)) for _ in range(2)]
    optimizers = [fusedstep.Muon(of, lr=0.1, normuon_beta2=0.9) for of in params]
    for step in range(4):
        if step == 2:
            entry = optimizers[0].state[moved][name]
            former, kept = entry.data, entry.data.clone()
            entry.data = kept.clone()
        moved.grad = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
        stayed.grad = moved.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert_same_bits(former, kept)
    assert_same_bits(moved, stayed)
    states = [
        optimizer.state[param] for optimizer, (param,) in zip(optimizers, params, strict=True)
    ]
    assert_same_bits(*(state[name] for state in states))
