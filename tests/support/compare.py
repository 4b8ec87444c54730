"""Steps of an optimizer compared with its NumPy reference, bit for bit, and with torch's."""

from __future__ import annotations

import math
from inspect import signature
from typing import Any

import pytest
import torch

import fusedstep
from tests.support.shadow import Shadow
from tests.support.tensors import copies, make_params, set_grads

# Sizes around those of a vector and a row. Tensors of several chunks: test_optimizer.py.
SHAPES = [(3, 5), (), (1,), (2_049,), (0,), (66, 130), (33,), (0, 4)]
# Options of every optimizer; each test file adds those of its own.
COMMON: dict[str, dict[str, Any]] = {
    "defaults": {},
    "maximize": {"maximize": True},
    "decay": {"weight_decay": 0.1, "lr": 0.02},
    "tensor lr": {"lr": torch.tensor(0.01)},
    "clip": {"max_norm": 1.0},
    "clip, 1-norm": {"max_norm": 3.0, "norm_type": 1.0},
    "clip, inf-norm": {"max_norm": 0.5, "norm_type": math.inf},
    "no clip needed": {"max_norm": 1e9},
    "clip to nothing": {"max_norm": 0.0},
}
IMPLEMENTATIONS = ("foreach", "fused")  # torch's, in addition to its for-loop


def cases(**of_each: dict[str, dict[str, Any]]) -> pytest.MarkDecorator:
    """Parametrizes a test by `name`, of an optimizer, and each of the `options` listed for it."""
    return pytest.mark.parametrize(
        ("name", "options"),
        [
            pytest.param(name, options, id=f"{name}, {case}")
            for name, choices in of_each.items()
            for case, options in choices.items()
        ],
    )


def compare_with_reference(
    name: str, options: dict[str, Any], device: torch.device | str = "cpu", steps: int = 4
) -> None:
    """Steps of fusedstep's optimizer and of its NumPy reference: the same bits each time."""
    params = make_params(*SHAPES, device=device)
    shadow = Shadow(getattr(fusedstep, name)(params, **options))
    for step in range(steps):
        set_grads(params, seed=step)
        shadow.step()


def compare_with_torch(
    name: str, options: dict[str, Any], implementation: str = "for-loop"
) -> None:
    """Steps of fusedstep's optimizer and of torch's, after torch's clip where ours clips.

    In float64, to the last digits: any number that is rounded to float32 on the way shows. A rate
    that is a tensor and the published norm are float32, so there everything is.
    """
    clip = {k: v for k, v in options.items() if k in ("max_norm", "norm_type")}
    exact = not clip and not isinstance(options.get("lr"), torch.Tensor)
    exact = exact and implementation == "for-loop"
    shapes = SHAPES[:4] if clip else SHAPES  # torch has no inf-norm of an empty tensor
    ours = make_params(*shapes, dtype=torch.float64 if exact else torch.float32)
    theirs = copies(ours)
    shared = {k: v for k, v in options.items() if k not in clip}
    chosen: dict[str, Any] = {"foreach": implementation == "foreach"}
    if "fused" in signature(getattr(torch.optim, name)).parameters:
        chosen["fused"] = implementation == "fused"
    elif implementation == "fused":
        pytest.fail(f"torch's {name} has no fused implementation")
    optimizer = getattr(fusedstep, name)(ours, **options)
    reference = getattr(torch.optim, name)(theirs, **shared | chosen)
    for step in range(8):
        set_grads(ours, seed=step)
        set_grads(theirs, seed=step)
        optimizer.step()
        if clip:
            norm = torch.nn.utils.clip_grad_norm_(theirs, **clip)
            torch.testing.assert_close(optimizer.grad_norm, norm, rtol=1e-5, atol=0)
        reference.step()
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if exact else {}
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **tolerance)
        for key, value in reference.state[q].items():
            torch.testing.assert_close(optimizer.state[p][key], value, **tolerance)
