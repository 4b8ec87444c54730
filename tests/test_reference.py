"""The NumPy reference itself: rounding against ml_dtypes, its formulas against plain ones."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from helpers import bounded
from hypothesis import given
from hypothesis import strategies as st

from fusedstep.reference.adam import AdamGroup, adam, power
from fusedstep.reference.clip import clip_coefficient, decide
from fusedstep.reference.norm import CHUNK, total_norm
from fusedstep.reference.storage import round_to

# All halves of a float32's bits, so that every exponent, tie and neighbour of a tie is met.
HIGH = np.arange(2**16, dtype=np.uint32) << 16
LOW = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
FLOATS = (HIGH[:, None] | LOW).reshape(-1).view(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_that_of_ml_dtypes(dtype: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = FLOATS.astype(np.dtype(getattr(ml_dtypes, dtype, dtype))).astype(np.float32)
    actual = round_to(FLOATS, dtype)
    both_nan = np.isnan(actual) & np.isnan(expected)
    assert np.all(both_nan | (actual.view(np.uint32) == expected.view(np.uint32)))


def test_rounding_to_the_computed_type_changes_nothing() -> None:
    assert np.array_equal(round_to(FLOATS, "float32"), FLOATS, equal_nan=True)
    assert round_to(np.array([1e300]), "float64") == 1e300
    assert round_to(np.array([1e300]), "float32") == np.inf


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 4096, CHUNK - 1, CHUNK + 1, 3 * CHUNK])
@pytest.mark.parametrize(("norm_type", "order"), [(2.0, 2), (1.0, 1), (math.inf, np.inf)])
def test_norm_is_close_to_the_plain_one(size: int, norm_type: float, order: float) -> None:
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    expected = np.linalg.norm(x.astype(np.float64), order) if size else 0.0
    np.testing.assert_allclose(total_norm([x], norm_type), expected, rtol=3e-7)
    np.testing.assert_allclose(total_norm([x], norm_type, 4.0), expected / 4, rtol=3e-7)


@bounded
@given(base=st.floats(0, 1, exclude_max=True), exponent=st.integers(0, 10_000))
def test_power_is_close_to_pow(base: float, exponent: int) -> None:
    assert power(base, exponent) == pytest.approx(base**exponent, rel=1e-11, abs=1e-300)


def test_adam_is_the_textbook_formula() -> None:
    rng = np.random.default_rng(0)
    group = AdamGroup(lr=0.01, weight_decay=0.1)
    param, m, v = rng.standard_normal(7), np.zeros(7), np.zeros(7)
    states, value = [m, v], param
    for t in range(1, 6):
        grad = rng.standard_normal(7)
        value, states = adam(value, grad, states, t, group, 0.5)
        m = 0.9 * m + 0.1 * (grad / 2)
        v = 0.999 * v + 0.001 * (grad / 2) ** 2
        param = param * (1 - 0.01 * 0.1)
        param = param - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(value, param, rtol=1e-12)


def test_decision() -> None:
    assert clip_coefficient(3.0, 1.5) == 1.5 / (3.0 + 1e-6)
    assert clip_coefficient(0.5, 1.0) == 1
    assert math.isnan(clip_coefficient(math.nan, 1.0))
    assert decide(None, grad_scale=4.0) == (0.25, False)
    assert decide(None, found_inf=1.0).skip
    assert decide(math.inf, skip_nonfinite=True).skip
    assert decide(1e39, skip_nonfinite=True).skip  # beyond the float32 that is published
    assert not decide(math.inf, max_norm=1.0).skip
    assert not decide(1e38, skip_nonfinite=True).skip
