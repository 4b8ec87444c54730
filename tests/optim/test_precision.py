"""State of fewer bits, masters, stochastic rounding: every mode has the bits of its reference."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.compare import SHAPES
from tests.support.modes import BFLOAT16, MODES, every_mode
from tests.support.optimizers import Kind, every_kind
from tests.support.shadow import Shadow
from tests.support.tensors import (
    LAYOUTS,
    assert_same_bits,
    laid_out,
    make_params,
    name_of,
    set_grads,
    threads,
)


def following(kind: Kind, mode: str, shapes: list[Any], **more: Any) -> Shadow:
    """The shadow of a new optimizer of this mode."""
    options, params = MODES[mode]
    return Shadow(kind.ours(make_params(*shapes, **params), **options, **more))


def params_of(shadow: Shadow) -> list[Tensor]:
    return [p for group in shadow.optimizer.param_groups for p in group["params"]]


@every_mode
@every_kind
def test_every_mode_has_the_bits_of_its_reference(kind: Kind, mode: str) -> None:
    shadow = following(kind, mode, SHAPES, max_norm=1.0)
    for step in range(4):
        set_grads(params_of(shadow), seed=step)
        if step == 2:
            params_of(shadow)[0].grad = params_of(shadow)[3].grad = None
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


@every_mode
def test_threads_and_chunks_do_not_matter(mode: str) -> None:
    """A tensor of several chunks, which threads share."""
    results = []
    for count in (1, 2):
        with threads(count):
            shadow = following(Kind("AdamW", {"lr": 0.01}), mode, [(100_001,), (7,)])
            for step in range(2):
                set_grads(params_of(shadow), seed=step)
                shadow.step()
        results.append(shadow.optimizer.state_dict()["state"][0] | {"param": params_of(shadow)[0]})
    for name, value in results[0].items():
        assert_same_bits(value, results[1][name], name)


@every_mode
@every_kind
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
@every_mode
def test_copies_go_on_alike(mode: str, duplicate: Any) -> None:
    shadow = following(Kind("AdamW", {"lr": 0.01}), mode, [(300,), (2, 2)])
    set_grads(params_of(shadow))
    shadow.step()
    other = Shadow(duplicate(shadow.optimizer))
    for option in ("state_dtype", "master", "stochastic_rounding", "seed", "ema_decay"):
        assert getattr(other.optimizer, option) == getattr(shadow.optimizer, option)
    for one in (shadow, other):
        set_grads(params_of(one), seed=1)
        one.step()
    for p, q in zip(params_of(shadow), params_of(other), strict=True):
        assert_same_bits(p, q)


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


ENTRIES: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {
    "bfloat16 state": {
        "exp_avg": (torch.bfloat16, (2, 150)), "exp_avg_sq": (torch.bfloat16, (2, 150)),
    },
    "int8 state": {
        "exp_avg": (torch.int8, (2, 150)), "exp_avg_scale": (torch.float32, (3,)),
        "exp_avg_sq": (torch.uint8, (2, 150)), "exp_avg_sq_scale": (torch.float32, (3,)),
    },
    "average of float64": {
        "exp_avg": (torch.float64, (2, 150)), "exp_avg_sq": (torch.float64, (2, 150)),
        "ema": (torch.float64, (2, 150)),
    },
    "remainder": {
        "exp_avg": (torch.float32, (2, 150)), "exp_avg_sq": (torch.float32, (2, 150)),
        "remainder": (torch.int16, (2, 150)),
    },
    "master": {
        "exp_avg": (torch.float32, (2, 150)), "exp_avg_sq": (torch.float32, (2, 150)),
        "master": (torch.float32, (2, 150)),
    },
}  # fmt: skip


@pytest.mark.parametrize("mode", ENTRIES)
def test_entries_of_the_state(mode: str) -> None:
    options, dtype = MODES[mode]
    params = make_params((2, 150), **dtype)
    optimizer = fusedstep.AdamW(params, **options)
    set_grads(params)
    optimizer.step()
    state = optimizer.state[params[0]]
    found = {name: (value.dtype, tuple(value.shape)) for name, value in state.items()}
    assert found == {**ENTRIES[mode], "step": (torch.float32, ())}


@pytest.mark.parametrize("kind", [Kind("SGD", {}), Kind("Lion", {})], ids=lambda kind: kind.name)
def test_steps_are_counted_where_random_numbers_need_it(kind: Kind) -> None:
    for dtype, options, counts in [
        (torch.bfloat16, {"stochastic_rounding": True}, True),
        (torch.float32, {"state_dtype": "int8"}, kind.name == "Lion"),
        (torch.bfloat16, {"master": "remainder", "ema_decay": 0.5}, False),
    ]:
        params = make_params((5,), dtype=dtype)
        optimizer = kind.ours(params, **options)
        for _ in range(3):
            set_grads(params)
            optimizer.step()
        assert float(optimizer.state[params[0]].get("step", 0)) == (3 if counts else 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 8.0), ({"state_dtype": torch.bfloat16}, 4.0), ({"state_dtype": "int8"}, 2 + 8 / 128),
        ({"state_dtype": "int8", "master": "remainder"}, 4 + 8 / 128),
        ({"master": "float32"}, 12.0), ({"ema_decay": 0.9}, 12.0),
    ],
)  # fmt: skip
def test_bytes_of_a_checkpoint(options: dict[str, Any], expected: float) -> None:
    params = make_params((128, 100), **BFLOAT16)
    optimizer = fusedstep.AdamW(params, **options)
    set_grads(params)
    optimizer.step()
    (state,) = optimizer.state_dict()["state"].values()
    size = sum(value.nbytes for name, value in state.items() if name != "step")
    assert size / params[0].numel() == expected


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=name_of)
def test_initial_accumulator_value_is_encoded(state_dtype: Any) -> None:
    params = make_params((300,), ())
    optimizer = fusedstep.Adagrad(params, initial_accumulator_value=0.5, state_dtype=state_dtype)
    exported = optimizer.to_torch_state_dict()["state"]
    for state in exported.values():
        assert_same_bits(state["sum"], torch.full_like(state["sum"], 0.5, dtype=torch.float32))
