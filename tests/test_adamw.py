"""AdamW against its NumPy reference bit for bit, against torch.optim.AdamW within tolerance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import bounded, copies, make_params, set_grads, threads
from hypothesis import given
from hypothesis import strategies as st
from twin import Twin

import fusedstep

SHAPES = [(3, 5), (), (1,), (70_001,), (0,), (256, 130), (33,), (0, 4)]
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "no decay": {"weight_decay": 0.0},
    "no momentum": {"betas": (0.0, 0.0)},
    "gpt": {"lr": 6e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
    "no eps": {"eps": 0.0, "lr": 0.1},
    "tensor lr": {"lr": torch.tensor(0.01)},
    "clip": {"max_norm": 1.0},
    "clip, 1-norm": {"max_norm": 3.0, "norm_type": 1.0},
    "clip, inf-norm": {"max_norm": 0.5, "norm_type": math.inf},
    "clip, all": {"max_norm": 0.7, "amsgrad": True, "maximize": True, "lr": 0.3},
    "no clip needed": {"max_norm": 1e9},
    "clip to nothing": {"max_norm": 0.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_the_reference_bit_for_bit(options: dict[str, Any], device: torch.device) -> None:
    params = make_params(*SHAPES, device=device)
    twin = Twin(fusedstep.AdamW(params, **options))
    for step in range(4):
        set_grads(params, seed=step)
        twin.step()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_number_of_threads_changes_no_bit(count: int) -> None:
    params = make_params((40_000,), (5, 7), (400, 400), (65_536,))
    with threads(count):
        twin = Twin(fusedstep.AdamW(params, max_norm=1.0))
        for step in range(2):
            set_grads(params, seed=step)
            twin.step()


@pytest.mark.parametrize("implementation", ["for-loop", "foreach", "fused"])
@pytest.mark.parametrize("name", [n for n in OPTIONS if "max_norm" not in OPTIONS[n]])
def test_is_close_to_torch(name: str, implementation: str) -> None:
    options = OPTIONS[name]
    if implementation == "foreach":  # takes no tensor lr
        options = options | {"lr": float(options.get("lr", 1e-3))}
    ours = make_params(*SHAPES)
    theirs = copies(ours)
    chosen = {"foreach": implementation == "foreach", "fused": implementation == "fused"}
    optimizers = fusedstep.AdamW(ours, **options), torch.optim.AdamW(theirs, **options, **chosen)
    for step in range(10):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_grads(params, seed=step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6])
def test_is_close_to_torch_with_its_clip_before(norm_type: float, max_norm: float) -> None:
    ours = make_params(*SHAPES[:4])  # torch has no inf-norm of an empty tensor
    theirs = copies(ours)
    optimizer = fusedstep.AdamW(ours, max_norm=max_norm, norm_type=norm_type)
    reference = torch.optim.AdamW(theirs)
    for step in range(5):
        set_grads(ours, seed=step)
        set_grads(theirs, seed=step)
        optimizer.step()
        norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
        reference.step()
        torch.testing.assert_close(optimizer.grad_norm, norm, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours, theirs)


def test_float64_is_close_to_torch_to_the_last_digits() -> None:
    ours = make_params((300,), (4, 4), dtype=torch.float64)
    theirs = copies(ours)
    optimizers = fusedstep.AdamW(ours, amsgrad=True), torch.optim.AdamW(theirs, amsgrad=True)
    for step in range(20):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_grads(params, seed=step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


def test_torch_own_step_runs_where_it_is_asked_for() -> None:
    for options in ({"fused": False}, {"foreach": True}, {"fused": False, "foreach": False}):
        ours = make_params((9,), (2, 3))
        theirs = copies(ours)
        optimizer = fusedstep.AdamW(ours, **options)
        reference = torch.optim.AdamW(theirs, **options)
        for step in range(3):
            for params, one in ((ours, optimizer), (theirs, reference)):
                set_grads(params, seed=step)
                one.step()
        assert all(map(torch.equal, ours, theirs))
        assert optimizer.grad_norm is None


def test_gradients_that_have_a_graph_of_their_own() -> None:
    ours, theirs = make_params((4, 4)), make_params((4, 4))
    optimizers = fusedstep.AdamW(ours, max_norm=1.0), fusedstep.AdamW(theirs, max_norm=1.0)
    for (param,), graph in ((ours, True), (theirs, False)):
        (param.grad,) = torch.autograd.grad((param**3).sum(), param, create_graph=graph)
    assert ours[0].grad.requires_grad
    for params, optimizer in zip((ours, theirs), optimizers, strict=True):
        norm = fusedstep.clip_grad_norm_(params, 10.0)
        assert not norm.requires_grad
        optimizer.step()
    assert torch.equal(ours[0], theirs[0])


def test_max_norm_can_be_changed_between_steps() -> None:
    params = make_params((50,))
    twin = Twin(fusedstep.AdamW(params, max_norm=1.0))
    for step, max_norm in enumerate([1.0, 0.1, None, 5.0]):
        set_grads(params, seed=step)
        twin.optimizer.max_norm = max_norm
        twin.norm = None
        twin.step()
        assert (twin.optimizer.grad_norm is None) == (max_norm is None)


def test_grad_norm_is_none_until_it_is_asked_for() -> None:
    params = make_params((5,))
    optimizer = fusedstep.AdamW(params)
    set_grads(params)
    optimizer.step()
    assert optimizer.grad_norm is None
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    assert optimizer.grad_norm is None
    optimizer.step()
    assert optimizer.grad_norm.dtype == torch.float32
    assert optimizer.grad_norm.shape == ()


finite = {"allow_nan": False, "allow_infinity": False}


@bounded
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=5),
    lr=st.floats(0, 10, **finite),
    betas=st.tuples(st.floats(0, 0.9999, **finite), st.floats(0, 0.99999, **finite)),
    eps=st.floats(0, 1, **finite),
    weight_decay=st.floats(0, 2, **finite),
    flags=st.tuples(st.booleans(), st.booleans()),
    max_norm=st.none() | st.floats(0, 1e6, **finite),
    norm_type=st.sampled_from([1.0, 2.0, math.inf]),
    scale=st.sampled_from([0.0, 1e-30, 1e-8, 1.0, 1e8, 1e25]),
    seed=st.integers(0, 100),
)
def test_equals_the_reference_for_any_hyperparameters(
    shapes: list[list[int]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    flags: tuple[bool, bool],
    max_norm: float | None,
    norm_type: float,
    scale: float,
    seed: int,
) -> None:
    amsgrad, maximize = flags
    params = make_params(*shapes, seed=seed)
    twin = Twin(
        fusedstep.AdamW(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, max_norm=max_norm,
            norm_type=norm_type,
        )
    )  # fmt: skip
    for step in range(3):
        set_grads(params, seed=seed + step, scale=scale)
        twin.step()


def test_numbers_of_numpy_are_numbers() -> None:
    params = make_params((3,))
    optimizer = fusedstep.AdamW(params, lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: np.float32(0.5))
    set_grads(params)
    before = params[0].detach().clone()
    optimizer.step()
    schedule.step()
    optimizer.step()
    assert isinstance(optimizer.param_groups[0]["lr"], np.floating)
    assert not torch.equal(params[0], before)


def test_a_profiler_sees_the_step() -> None:
    params = make_params((3,))
    optimizer = fusedstep.AdamW(params)
    set_grads(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert "Optimizer.step#AdamW.step" in {event.name for event in profile.events()}
