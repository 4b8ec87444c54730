"""Tables: laid out again only where something changed, whatever gradients come and go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusedstep
from fusedstep import _C
from tests.support.shadow import Shadow
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    bounded,
    laid_out,
    make_params,
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
