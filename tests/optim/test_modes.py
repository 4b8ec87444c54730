"""Modes (small state, masters, averages, stochastic rounding) have the bits of their reference."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.modes import BFLOAT16, MODES, every_kind_and_mode, every_mode, forward_copy
from tests.support.optimizers import Kind, assert_same_run, every_kind, params_of
from tests.support.refusals import Snapshot
from tests.support.shadow import Shadow
from tests.support.tensors import (
    LAYOUTS,
    assert_same_bits,
    laid_out,
    make_params,
    set_grads,
    threads,
)

# A tensor of several chunks: test_threads_and_chunks_do_not_matter.
SHAPES = [(3, 5), (), (1,), (1_025,), (0,), (66, 130), (33,), (0, 4)]


def following(kind: Kind, mode: str, shapes: list[Any], **more: Any) -> Shadow:
    """The shadow of a new optimizer of this mode."""
    options, params = MODES[mode]
    return Shadow(kind.ours(make_params(*shapes, **params), **options, **more))


@every_mode
@every_kind
def test_every_mode_has_the_bits_of_its_reference(kind: Kind, mode: str) -> None:
    shadow = following(kind, mode, SHAPES, max_norm=1.0)
    for step in range(4):
        set_grads(params_of(shadow.optimizer), seed=step)
        if step == 2:
            params_of(shadow.optimizer)[0].grad = params_of(shadow.optimizer)[3].grad = None
        shadow.step()


@pytest.mark.parametrize("layout", LAYOUTS)
@every_mode
def test_layouts(mode: str, layout: str) -> None:
    """Blocks, random numbers and remainders follow the order of memory."""
    options, dtype = MODES[mode]
    params = [
        laid_out(p.detach(), layout).requires_grad_()
        for p in make_params((3, 70, 5), (66, 130), (2, 3, 8, 8), **dtype)
    ]
    params[2] = params[2].detach().to(memory_format=torch.channels_last).requires_grad_()
    shadow = Shadow(fusedstep.AdamW(params, lr=0.01, amsgrad=True, **options))
    for step in range(3):
        set_grads(params, seed=step, dtype=torch.float32)
        shadow.step()


@pytest.mark.parametrize("count", [1, 2])
@every_mode
def test_threads_and_chunks_do_not_matter(mode: str, count: int) -> None:
    """A tensor of several chunks, which threads share."""
    with threads(count):
        shadow = following(Kind("AdamW", {"lr": 0.01}), mode, [(33_000,), (7,)])
        for step in range(2):
            set_grads(params_of(shadow.optimizer), seed=step)
            shadow.step()


@every_kind_and_mode
def test_a_skipped_step_leaves_everything_as_it_was(kind: Kind, mode: str) -> None:
    options, dtype = MODES[mode]
    params = make_params((300,), (), (4, 5), **dtype)
    optimizer = kind.ours(params, nonfinite="skip", **options)
    for step in range(2):
        set_grads(params, seed=step)
        optimizer.step()
    before = copy.deepcopy([dict(optimizer.state[p], param=p.detach()) for p in params])
    params[0].grad[7] = math.nan
    optimizer.step()
    for param, entries in zip(params, before, strict=True):
        for name, value in entries.items():
            assert_same_bits({**optimizer.state[param], "param": param}[name], value, name)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("mode", ["none", *MODES])
def test_copies_have_the_same_options_and_go_their_own_way(mode: str, duplicate: Any) -> None:
    options, dtype = MODES.get(mode, ({}, {}))
    params = make_params((300,), (2, 2), **dtype)
    optimizer = fusedstep.AdamW(
        params, lr=0.1, max_norm=0.5, norm_type=1, nonfinite="skip", **options
    )
    set_grads(params)
    optimizer.step()
    other = duplicate(optimizer)
    assert other.options == optimizer.options
    before = Snapshot(params, optimizer)
    for step in range(1, 3):
        set_grads(params_of(other), seed=step)
        other.step()
    before.check()
    for step in range(1, 3):
        set_grads(params, seed=step)
        optimizer.step()
    assert_same_run(optimizer, other)


def test_groups_have_modes_of_their_own() -> None:
    """Parameters of several dtypes in one optimizer, with one norm over all."""
    weights, norms = make_params((40, 40), **BFLOAT16), make_params((40,), (3,))
    doubles, plain = make_params((30,), dtype=torch.float64), make_params((200,), **BFLOAT16)
    groups = [
        {"params": weights},
        {"params": norms, "master": None},
        {"params": doubles, "master": None, "state_dtype": None},
        {"params": plain, "master": None, "stochastic_rounding": True, "state_dtype": "int8"},
    ]
    given = [dict(group) for group in groups]
    optimizer = fusedstep.AdamW(
        groups, max_norm=1.0, master="remainder", state_dtype=torch.bfloat16, ema_decay=0.9
    )
    shadow = Shadow(optimizer)
    for step in range(3):
        set_grads([*weights, *norms, *doubles, *plain], seed=step)
        shadow.step()
    assert optimizer.state[weights[0]].keys() >= {"remainder", "ema"}
    assert optimizer.state[norms[0]]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.state[doubles[0]]["exp_avg"].dtype == torch.float64
    assert optimizer.state[plain[0]]["exp_avg_sq"].dtype == torch.uint8
    kept = optimizer.state_dict()["param_groups"]
    other = fusedstep.AdamW(given, max_norm=1.0, master="remainder", state_dtype=torch.bfloat16,
                            ema_decay=0.9)  # fmt: skip
    for group in kept:  # a checkpoint of another class says nothing of modes
        group.pop("master", None)
    other.load_state_dict({**copy.deepcopy(optimizer.state_dict()), "param_groups": kept})
    assert [group.get("master", "") for group in other.param_groups] == ["", None, None, None]


# --- masters: the trajectory of float32 parameters ------------------------------------------------

MASTER_SHAPES = [(300,), (), (0,), (66, 130)]


def both(kind: Kind, master: str) -> Iterator[tuple[list[Tensor], list[Tensor], int]]:
    """Steps of bfloat16 parameters and of float32 ones with the same gradients."""
    params = make_params(*MASTER_SHAPES, dtype=torch.bfloat16)
    wide = [p.detach().float().requires_grad_() for p in params]
    ours = kind.ours(params, master=master, max_norm=1.0)
    exact = kind.ours(wide, max_norm=1.0)
    for step in range(6):
        set_grads(params, seed=step)
        for p, q in zip(params, wide, strict=True):
            q.grad_dtype = None
            q.grad = p.grad.clone()
        ours.step()
        exact.step()
        yield params, wide, step


@pytest.mark.parametrize("master", ["float32", "remainder"])
@every_kind
def test_trajectory_is_that_of_float32_parameters(kind: Kind, master: str) -> None:
    differs = False
    for params, wide, _ in both(kind, master):
        for p, q in zip(params, wide, strict=True):
            assert_same_bits(p.detach(), forward_copy(master, q))
            differs |= not torch.equal(p.detach().float(), q.detach())
    assert differs  # else bfloat16 alone would have done


@pytest.mark.parametrize("master", ["float32", "remainder", "correction"])
def test_updates_too_small_for_bfloat16_add_up(master: str) -> None:
    param = torch.ones(200, dtype=torch.bfloat16, requires_grad=True)
    plain = torch.ones(200, dtype=torch.bfloat16, requires_grad=True)
    optimizers = [
        fusedstep.SGD([param], lr=2.0**-12, master=master),
        fusedstep.SGD([plain], lr=2.0**-12),
    ]
    for one in (param, plain):
        one.grad = torch.ones_like(one)
    for _ in range(256):
        for optimizer in optimizers:
            optimizer.step()
    assert (param == 1 - 256 * 2.0**-12).all()
    assert (plain == 1).all()


def test_ties_are_rounded_away_from_zero_where_the_parameter_is_a_part() -> None:
    away = 1 + 2.0**-7
    for master, expected in (("float32", 1.0), ("remainder", away), ("correction", away)):
        param = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
        param.grad = -torch.ones_like(param)
        fusedstep.SGD([param], lr=2.0**-8, master=master).step()
        assert (param == expected).all()


def test_loading_weights_before_the_first_step_counts() -> None:
    """The master is made at the first step, not by the constructor: Adagrad's makes the sums."""
    for kind in (Kind("AdamW", {}), Kind("Adagrad", {})):
        (param,) = make_params((100,), dtype=torch.bfloat16)
        optimizer = kind.ours([param], master="float32", lr=0.0)
        with torch.no_grad():
            param.fill_(3.0)
        set_grads([param])
        optimizer.step()
        assert (param == 3).all()
        np.testing.assert_array_equal(optimizer.state[param]["master"].numpy(), 3)


@pytest.mark.parametrize("master", ["float32", "remainder", "correction"])
def test_weights_written_after_a_step_take_effect(master: str) -> None:
    """As by load_state_dict of the model; elements that were not written keep their value."""
    (param,) = make_params((3_000,), **BFLOAT16)
    shadow = Shadow(fusedstep.SGD([param], lr=0.1, master=master, ema_decay=0.5))
    for step in range(4):
        set_grads([param], seed=step)
        if step == 2:
            written = torch.linspace(-300, 300, 1_500).bfloat16()
            param.data[:1_500] = written
            shadow.values[param][:1_500] = written.float().numpy()
            param.grad.zero_()
        if step == 3:
            param.grad = None  # at rest
            param.data[:1_500] = written = -written
            shadow.values[param][:1_500] = written.float().numpy()
        shadow.step()
        if step >= 2:
            torch.testing.assert_close(param[:1_500], written)
