"""Tables: laid out again only where something changed, and always where users changed something."""

from __future__ import annotations

import copy
import math
from collections import UserDict, defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer

import fusedstep
from fusedstep import _C
from tests.support.optimizers import Kind, every_kind
from tests.support.shadow import Shadow
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    assert_same_bits,
    bounded,
    laid_out,
    make_params,
    name_of,
    set_grads,
)


def table_of(optimizer: fusedstep.AdamW) -> _C.TensorTable:
    (table,) = optimizer._internals.tables.values()
    return table.handle


def test_is_laid_out_once_although_gradients_move() -> None:
    params = make_params((40_000,), (0,), (3, 3))
    shadow = Shadow(fusedstep.AdamW(params, max_norm=1.0))
    addresses, versions, kept = set(), set(), []
    for step in range(5):
        shadow.optimizer.zero_grad()
        set_grads(params, seed=step)
        kept.append([p.grad for p in params])  # so that no address comes again
        shadow.step()
        addresses.add(params[0].grad.data_ptr())
        versions.add(table_of(shadow.optimizer).layout_version)
    assert len(addresses) == 5
    assert len(versions) == 1


def test_hyperparameters_change_without_a_new_layout() -> None:
    params = make_params((500,), (20,))
    shadow = Shadow(fusedstep.AdamW([{"params": [p]} for p in params]))
    versions = set()
    for step in range(4):
        set_grads(params, seed=step)
        for g, group in enumerate(shadow.optimizer.param_groups):
            group |= {"lr": 0.1 / (step + 1 + g), "weight_decay": 0.1 * step, "eps": 1e-8 + g}
            group |= {"betas": (0.9 - 0.1 * step, 0.99), "maximize": step == 2}
        shadow.step()
        versions.add(table_of(shadow.optimizer).layout_version)
    assert len(versions) == 1


@pytest.mark.parametrize(
    "size", [0, 1, _C.CHUNK_SIZE - 1, _C.CHUNK_SIZE, _C.CHUNK_SIZE + 1, 100_000]
)
def test_chunks_and_rows(size: int) -> None:
    params = make_params((size,), (7,))
    optimizer = fusedstep.AdamW(params)
    set_grads(params)
    optimizer.step()
    table = table_of(optimizer)
    assert (table.num_rows, table.num_launches) == (2, 1)
    assert table.num_chunks == max(1, math.ceil(size / _C.CHUNK_SIZE)) + 1


def test_one_launch_for_each_compute_type_stored_as_it_is_and_otherwise() -> None:
    params = [p for dtype in DTYPES for p in make_params(*[(9,)] * 8, dtype=dtype)]
    optimizer = fusedstep.AdamW([{"params": params[:10], "lr": 0.1}, {"params": params[10:]}])
    for i, param in enumerate(params):
        set_grads([param], dtype=DTYPES[i % 4])
    optimizer.step()
    assert table_of(optimizer).num_launches == 4
    set_grads(params)
    optimizer.step()
    assert table_of(optimizer).num_launches == 3
    for param in params[8:16]:
        param.grad = None  # the float64 ones
    optimizer.step()
    assert table_of(optimizer).num_launches == 2


def test_hundreds_of_groups() -> None:
    params = make_params(*[(1 + i % 50,) for i in range(300)])
    groups = [
        {"params": [p], "lr": 1e-3 * i, "weight_decay": 0.01 * (i % 7), "amsgrad": i % 3 == 0}
        for i, p in enumerate(params)
    ]
    shadow = Shadow(fusedstep.AdamW(groups, max_norm=1.0))
    for step in range(2):
        set_grads(params, seed=step)
        shadow.step()
    table = table_of(shadow.optimizer)
    assert (table.num_rows, table.num_launches) == (300, 1)


@bounded
@given(
    present=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=2, max_size=6),
    max_norm=st.sampled_from([None, 1.0]),
    per_group=st.integers(1, 6),
)
def test_gradients_that_come_and_go(
    present: list[list[bool]], max_norm: float | None, per_group: int
) -> None:
    params = make_params((5,), (0,), (3, 3), (), (70,), (2,))
    groups = [{"params": params[i : i + per_group]} for i in range(0, 6, per_group)]
    shadow = Shadow(fusedstep.AdamW(groups, max_norm=max_norm))
    counts = [0] * len(params)
    for step, flags in enumerate(present):
        set_grads(params, seed=step)
        for i, (param, has_grad) in enumerate(zip(params, flags, strict=True)):
            counts[i] += has_grad
            if not has_grad:
                param.grad = None
        shadow.step()
    steps = [int(shadow.optimizer.state.get(p, {}).get("step", 0)) for p in params]
    assert steps == counts  # each parameter has its own, so its own bias correction


def test_same_pattern_of_gradients_keeps_the_layout() -> None:
    params = make_params((5,), (6,), (7,))
    shadow = Shadow(fusedstep.AdamW(params))
    set_grads(params)
    shadow.step()
    versions = []
    for missing in (1, 1, None, 1):
        set_grads(params)
        if missing is not None:
            params[missing].grad = None
        shadow.step()
        versions.append(table_of(shadow.optimizer).layout_version)
    assert versions[0] == versions[1] < versions[2] < versions[3]


def test_two_optimizers_take_turns() -> None:
    params = make_params((20,), (40_000,))
    shadows = [Shadow(fusedstep.AdamW(params, lr=lr, max_norm=1.0)) for lr in (0.1, 0.01)]
    for step in range(4):
        set_grads(params, seed=step)
        shadow = shadows[step % 2]
        for param in params:
            shadow._take_over(param)
        shadow.step()


@bounded
@given(
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=3, max_size=8),
    layouts=st.lists(st.sampled_from(LAYOUTS), min_size=8, max_size=8),
)
def test_gradients_whose_ids_and_addresses_come_again(
    dtypes: list[torch.dtype], layouts: list[str]
) -> None:
    params = make_params((8, 8), (8, 8))
    shadow = Shadow(fusedstep.AdamW(params, max_norm=1.0))
    for step, (dtype, layout) in enumerate(zip(dtypes, layouts, strict=False)):
        for param in params:
            param.grad = None  # freed: the allocator hands the same memory out again
        set_grads(params, seed=step, dtype=dtype)
        params[1].grad = laid_out(params[1].grad, layout)
        shadow.step()


def test_parameters_whose_ids_come_again() -> None:
    optimizer = fusedstep.AdamW(make_params((50,)))
    seen: set[int] = set()
    for step in range(500):
        (param,) = make_params((50 + step % 3,), seed=step)
        optimizer.param_groups[0]["params"] = [param]
        optimizer.state.clear()
        set_grads([param], seed=step)
        Shadow(optimizer).step()
        if id(param) in seen and step >= 10:
            return
        seen.add(id(param))
        del param
    raise AssertionError("no id came again: this test has tested nothing")


# --- what users change between steps: parameters, groups, data and state --------------------------


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


# --- what a table does not hold -------------------------------------------------------------------


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


def test_blocks_of_rows_are_listed_once_under_a_schedule() -> None:
    (param,) = make_params((12, 4))
    optimizer = fusedstep.Muon([param], split_sizes=(8, 4))
    versions = []
    for step in range(4):
        param.grad = torch.ones(12, 4)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
        (table,) = optimizer._internals.tables.values()
        versions.append(table.descent._blocks.handle.layout_version)
    assert len(set(versions[1:])) == 1
