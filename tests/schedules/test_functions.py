"""The schedules against their formulas and torch's schedulers, at every joint and in between."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from fusedstep.schedules import (
    batch_size_ramp,
    constant,
    piecewise_constant,
    warmup_cosine,
    warmup_linear,
    warmup_stable_decay,
)
from tests.support.tensors import bounded

RECIPE = {"max_lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 10, "max_steps": 50}
STABLE = RECIPE | {"decay_steps": 20}
# How each falls, and the largest share of the way that one of n falling steps may take.
FALLS = {
    "cosine": (warmup_cosine, {}, lambda n: math.pi / 2 / n),
    "linear": (warmup_linear, {}, lambda n: 1 / n),
    "stable, 1-sqrt": (warmup_stable_decay, {"decay": "1-sqrt"}, lambda n: n**-0.5),
    "stable, linear": (warmup_stable_decay, {"decay": "linear"}, lambda n: 1 / n),
}


def torch_rates(make, lr: float, steps: int) -> list[float]:
    """The rates of a torch scheduler's first `steps` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def warm_up(optimizer):
    """torch's warm-up in RECIPE: a tenth of the peak at step 0, all of it at step 9."""
    return lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)


def test_the_first_rate_is_not_zero():
    assert warmup_cosine(0, **RECIPE) == pytest.approx(6e-5)


def test_warm_up_is_linear_and_reaches_the_peak_exactly():
    rates = [warmup_cosine(step, **RECIPE) for step in range(10)]
    assert rates == pytest.approx([6e-5 * (step + 1) for step in range(10)])
    assert rates[-1] == warmup_cosine(10, **RECIPE) == 6e-4


def test_the_cosine_is_half_way_down_in_the_middle_and_stays_at_the_bottom():
    assert warmup_cosine(30, **RECIPE) == pytest.approx((6e-4 + 6e-5) / 2)
    assert warmup_cosine(20, **RECIPE) == pytest.approx(
        6e-5 + 0.5 * (1 + math.cos(math.pi / 4)) * 5.4e-4
    )
    assert {warmup_cosine(step, **RECIPE) for step in (50, 51, 10**9)} == {6e-5}


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_schedule_may_be_all_warm_up(steps):
    rates = [
        warmup_cosine(step, max_lr=1.0, min_lr=0.1, warmup_steps=steps, max_steps=steps)
        for step in range(steps + 1)
    ]
    assert rates[:-1] == [(step + 1) / steps for step in range(steps)]
    assert rates[-1] == 0.1


@pytest.mark.parametrize("fall", FALLS)
@bounded
@given(
    warmup=st.integers(0, 40),
    hold=st.integers(0, 20),
    decay=st.integers(0, 40),
    peak=st.just(0.0) | st.floats(1e-300, 1e6),  # leaps that are not denormal
    share=st.floats(0, 1),
)
def test_a_rate_rises_holds_then_falls_between_its_bounds(fall, warmup, hold, decay, peak, share):
    schedule, options, largest = FALLS[fall]
    if schedule is warmup_stable_decay:
        options = options | {"decay_steps": decay}
    else:
        hold = 0
    start, end, low = warmup + hold, warmup + hold + decay, share * peak
    recipe = {"max_lr": peak, "min_lr": low, "warmup_steps": warmup, "max_steps": end}
    rates = [schedule(step, **recipe, **options) for step in range(end + 3)]

    rise, held, falling = rates[:warmup], rates[warmup:start], rates[start : end + 1]
    assert rise == [pytest.approx(peak * (step + 1) / warmup) for step in range(warmup)]
    assert rise == sorted(rise)
    assert rise[-1:] in ([], [peak])
    assert held == [peak] * hold
    assert falling[0] == (peak if decay else low)
    assert falling == sorted(falling, reverse=True)
    assert all(low <= rate <= peak for rate in falling)
    if decay:
        leaps = [before - after for before, after in pairwise(falling)]
        assert max(leaps) <= largest(decay) * (peak - low) + 1e-14 * peak
    assert rates[end:] == [low] * 3


@pytest.mark.parametrize("fall", FALLS)
def test_no_step_of_the_run_has_rate_zero_where_it_falls_to_zero(fall):
    schedule, options, _ = FALLS[fall]
    recipe = (STABLE if schedule is warmup_stable_decay else RECIPE) | {"min_lr": 0} | options
    rates = [schedule(step, **recipe) for step in range(51)]
    assert min(rates[:50]) > 0 == rates[50]


def test_rounding_does_not_lead_below_the_bottom():
    recipe = {"max_lr": 6e-4, "min_lr": 1.3e-5, "warmup_steps": 0, "max_steps": 2 * 10**8}
    assert 6e-4 - (6e-4 - 1.3e-5) < 1.3e-5  # in floats, where the cosine has become -1
    assert warmup_cosine(2 * 10**8 - 1, **recipe) == 1.3e-5


def test_the_cooldowns_follow_their_formulas():
    for step, share in ((30, 0), (35, 0.25), (40, 0.5), (49, 0.95), (50, 1)):
        line = warmup_stable_decay(step, **STABLE, decay="linear")
        assert line == pytest.approx(6e-4 - 5.4e-4 * share)
        assert warmup_stable_decay(step, **STABLE) == pytest.approx(
            6e-5 + 5.4e-4 * (1 - math.sqrt(share))
        )


@bounded
@given(step=st.integers(0, 30), longer=st.integers(50, 10**6))
def test_before_the_cooldown_the_length_of_the_run_plays_no_part(step, longer):
    short = warmup_stable_decay(step, **STABLE)
    assert short == warmup_stable_decay(step, **STABLE | {"max_steps": longer})


def test_without_a_plateau_the_linear_cooldown_is_warmup_linear():
    recipe = STABLE | {"decay_steps": 40, "decay": "linear"}
    for step in range(60):
        assert warmup_stable_decay(step, **recipe) == warmup_linear(step, **RECIPE)


def test_a_constant_is_constant():
    assert {constant(step, lr=0.3) for step in (0, 1, 10**12)} == {0.3}


@bounded
@given(
    boundaries=st.lists(st.integers(1, 50), max_size=6, unique=True).map(sorted),
    values=st.lists(st.floats(0, 1e3), min_size=7, max_size=7),
)
def test_a_staircase_changes_at_its_boundaries_and_nowhere_else(boundaries, values):
    values = values[: len(boundaries) + 1]
    lengths = [end - first for first, end in pairwise([0, *boundaries, 60])]
    expected = np.repeat(values, lengths).tolist()
    rates = [piecewise_constant(s, boundaries=boundaries, values=values) for s in range(60)]
    assert rates == expected


@pytest.mark.parametrize(
    ("schedule", "recipe", "lr", "oracle"),
    [
        (
            warmup_cosine,
            RECIPE,
            6e-4,
            lambda o: lr_scheduler.SequentialLR(
                o, [warm_up(o), lr_scheduler.CosineAnnealingLR(o, 40, eta_min=6e-5)], [10]
            ),
        ),
        (
            warmup_linear,
            RECIPE,
            6e-4,
            lambda o: lr_scheduler.SequentialLR(
                o, [warm_up(o), lr_scheduler.LinearLR(o, 1, 0.1, total_iters=40)], [10]
            ),
        ),
        (
            warmup_stable_decay,
            STABLE | {"decay": "linear"},
            6e-4,
            lambda o: lr_scheduler.SequentialLR(
                o,
                [
                    warm_up(o),
                    lr_scheduler.ConstantLR(o, 1),
                    lr_scheduler.LinearLR(o, 1, 0.1, total_iters=20),
                ],
                [10, 30],
            ),
        ),
        (
            warmup_linear,
            {"max_lr": 0.5, "min_lr": 0, "warmup_steps": 0, "max_steps": 50},
            0.5,
            lambda o: lr_scheduler.PolynomialLR(o, total_iters=50),
        ),
        (constant, {"lr": 0.1}, 0.1, lambda o: lr_scheduler.ConstantLR(o, 1)),
        (
            piecewise_constant,
            {"boundaries": [7, 8, 30], "values": [1.0, 0.1, 0.01, 0.001]},
            1.0,
            lambda o: lr_scheduler.MultiStepLR(o, [7, 8, 30], gamma=0.1),
        ),
    ],
    ids=["cosine", "linear", "stable", "polynomial", "constant", "multi-step"],
)
def test_torchs_schedulers_give_the_same_rates(schedule, recipe, lr, oracle):
    ours = [schedule(step, **recipe) for step in range(51)]  # torch's cosine rises again beyond
    assert ours == pytest.approx(torch_rates(oracle, lr, 51), rel=1e-12, abs=1e-18)


def test_the_batch_grows_linearly_and_is_rounded_down():
    sizes = [
        batch_size_ramp(t, start=4, end=12, ramp_tokens=80) for t in (0, 9, 10, 79, 80, 10**12)
    ]
    assert sizes == [4, 4, 5, 11, 12, 12]


def test_without_a_ramp_the_batch_has_its_full_size_at_once():
    assert batch_size_ramp(0, start=4, end=12, ramp_tokens=0) == 12


def test_the_ramp_is_exact_where_floats_are_not():
    assert batch_size_ramp(10**18 - 1, start=1, end=10**18 + 1, ramp_tokens=10**18) == 10**18
