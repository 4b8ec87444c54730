"""What the schedules take as numbers, what they refuse, and how they word it."""

import math

import numpy as np
import pytest
import torch

from fusedstep.schedules import (
    batch_size_ramp,
    constant,
    piecewise_constant,
    warmup_cosine,
    warmup_linear,
    warmup_stable_decay,
)

RECIPE = {"max_lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 10, "max_steps": 50}
CALLS = {
    warmup_cosine: RECIPE,
    warmup_linear: RECIPE,
    warmup_stable_decay: RECIPE | {"decay_steps": 20},
    constant: {"lr": 0.1},
    piecewise_constant: {"boundaries": [4, 9], "values": [0.1, 0.3, 0.2]},
}


@pytest.mark.parametrize("schedule", CALLS)
def test_numbers_of_numpy_and_torch_count_and_the_rate_is_a_float(schedule):
    recipe, kinds = CALLS[schedule], (np.int64, np.float64)
    converted = {
        name: kinds[isinstance(value, float)](value) if np.isscalar(value) else value
        for name, value in recipe.items()
    }
    for step in (0, 7, 12, 40, 99):
        rate = schedule(np.int64(step), **converted)
        assert type(rate) is float
        assert rate == schedule(step, **recipe)
    assert constant(0, lr=torch.tensor(0.5)) == 0.5


@pytest.mark.parametrize("schedule", CALLS)
@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (-1, ValueError, "step must be at least 0, got -1"),
        (1.0, TypeError, "step must be an int, got float 1.0"),
        (True, TypeError, "step must be an int, got bool True"),
        (None, TypeError, "step must be an int, got NoneType None"),
    ],
)
def test_every_schedule_refuses_what_is_no_step(schedule, step, error, message):
    with pytest.raises(error, match=f"^{schedule.__name__}: {message}$"):
        schedule(step, **CALLS[schedule])


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_linear, warmup_stable_decay])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"warmup_steps": 51},
            ValueError,
            r"warmup_steps must be at most max_steps \(50\), got 51",
        ),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0, got -1"),
        ({"warmup_steps": 0.1}, TypeError, "warmup_steps must be an int, got float 0.1"),
        ({"max_steps": 5e4}, TypeError, "max_steps must be an int, got float 50000.0"),
        ({"max_lr": math.inf}, ValueError, "max_lr must be finite, got inf"),
        ({"max_lr": math.nan}, ValueError, "max_lr must be 0 or more, got nan"),
        ({"max_lr": -1}, ValueError, "max_lr must be 0 or more, got -1.0"),
        ({"max_lr": "1"}, TypeError, "max_lr must be a number, got str"),
        ({"min_lr": math.nan}, ValueError, "min_lr must be 0 or more, got nan"),
        ({"min_lr": 1.0}, ValueError, r"min_lr must be at most max_lr \(0.0006\), got 1.0"),
    ],
)
def test_a_warm_up_refuses(schedule, change, error, message):
    with pytest.raises(error, match=f"^{schedule.__name__}: {message}$"):
        schedule(**{"step": 0, **CALLS[schedule], **change})


@pytest.mark.parametrize(
    ("schedule", "change", "error", "message"),
    [
        (
            warmup_stable_decay,
            {"decay_steps": 41},
            ValueError,
            r"decay_steps must be at most max_steps - warmup_steps \(40\), got 41",
        ),
        (
            warmup_stable_decay,
            {"decay_steps": None},
            TypeError,
            "decay_steps must be an int, got NoneType None",
        ),
        (
            warmup_stable_decay,
            {"decay": "cosine"},
            ValueError,
            "decay must be '1-sqrt' or 'linear', got 'cosine'",
        ),
        (constant, {"lr": -0.1}, ValueError, "lr must be 0 or more, got -0.1"),
        (constant, {"lr": math.inf}, ValueError, "lr must be finite, got inf"),
        (constant, {"lr": [0.1]}, TypeError, "lr must be a number, got list"),
        (
            piecewise_constant,
            {"boundaries": [4]},
            ValueError,
            r"values must have one more entry than boundaries \(1\), got 3",
        ),
        (
            piecewise_constant,
            {"boundaries": [4, 4]},
            ValueError,
            r"boundaries\[1\] must be at least 5, got 4",
        ),
        (
            piecewise_constant,
            {"boundaries": [0, 4]},
            ValueError,
            r"boundaries\[0\] must be at least 1, got 0",
        ),
        (
            piecewise_constant,
            {"boundaries": [4, 9.5]},
            TypeError,
            r"boundaries\[1\] must be an int, got float 9.5",
        ),
        (
            piecewise_constant,
            {"values": [0.1, math.nan, 0.2]},
            ValueError,
            r"values\[1\] must be 0 or more, got nan",
        ),
        (
            piecewise_constant,
            {"boundaries": 4},
            TypeError,
            "boundaries must be a sequence, got int",
        ),
        (piecewise_constant, {"values": "abc"}, TypeError, "values must be a sequence, got str"),
    ],
)
def test_a_schedule_refuses(schedule, change, error, message):
    with pytest.raises(error, match=f"^{schedule.__name__}: {message}$"):
        schedule(**{"step": 0, **CALLS[schedule], **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": -1}, ValueError, "tokens must be at least 0, got -1"),
        ({"tokens": 0.5}, TypeError, "tokens must be an int, got float 0.5"),
        ({"start": 0}, ValueError, "start must be at least 1, got 0"),
        ({"end": 3}, ValueError, r"end must be at least start \(4\), got 3"),
        ({"ramp_tokens": -5}, ValueError, "ramp_tokens must be at least 0, got -5"),
    ],
)
def test_batch_size_ramp_refuses(change, error, message):
    with pytest.raises(error, match=f"^batch_size_ramp: {message}$"):
        batch_size_ramp(**{"tokens": 0, "start": 4, "end": 12, "ramp_tokens": 80, **change})
