"""The schedules against their formulas, at the edges and in between."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedstep.schedules import batch_size_ramp, warmup_cosine

RECIPE = {"max_lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 10, "max_steps": 50}


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


@given(
    warmup=st.integers(0, 40),
    decay=st.integers(0, 40),
    peak=st.floats(0, 1e6),
    share=st.floats(0, 1),
)
def test_a_rate_rises_then_falls_between_its_bounds(warmup, decay, peak, share):
    rates = [
        warmup_cosine(
            step,
            max_lr=peak,
            min_lr=share * peak,
            warmup_steps=warmup,
            max_steps=warmup + decay,
        )
        for step in range(warmup + decay + 2)
    ]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert all(share * peak <= rate <= peak for rate in rates[warmup:])
    assert all(0 <= rate <= peak for rate in rates[:warmup])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": -1}, ValueError, "step must be at least 0, got -1"),
        ({"step": 1.0}, TypeError, "step must be an int, got float 1.0"),
        ({"step": True}, TypeError, "step must be an int, got bool True"),
        (
            {"warmup_steps": 51},
            ValueError,
            r"warmup_steps must be at most max_steps \(50\), got 51",
        ),
        ({"max_lr": math.inf}, ValueError, "max_lr must be finite, got inf"),
        ({"max_lr": math.nan}, ValueError, "max_lr must be 0 or more, got nan"),
        ({"max_lr": "1"}, TypeError, "max_lr must be a number, got str"),
        ({"min_lr": 1.0}, ValueError, r"min_lr must be at most max_lr \(0.0006\), got 1.0"),
    ],
)
def test_warmup_cosine_refuses(change, error, message):
    with pytest.raises(error, match=f"^warmup_cosine: {message}$"):
        warmup_cosine(**{"step": 0, **RECIPE, **change})


def test_the_batch_grows_linearly_and_is_rounded_down():
    sizes = [
        batch_size_ramp(t, start=4, end=12, ramp_tokens=80) for t in (0, 9, 10, 79, 80, 10**12)
    ]
    assert sizes == [4, 4, 5, 11, 12, 12]


def test_without_a_ramp_the_batch_has_its_full_size_at_once():
    assert batch_size_ramp(0, start=4, end=12, ramp_tokens=0) == 12


def test_the_ramp_is_exact_where_floats_are_not():
    assert batch_size_ramp(10**18 - 1, start=1, end=10**18 + 1, ramp_tokens=10**18) == 10**18


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
