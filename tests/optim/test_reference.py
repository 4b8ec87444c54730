"""The NumPy reference itself: rounding against ml_dtypes, rules against torch or plain formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.adagrad import AdagradGroup, adagrad
from tests.reference.adam import AdamGroup, adam, power
from tests.reference.clip import clip_coefficient, decide
from tests.reference.lion import LionGroup, lion
from tests.reference.norm import CHUNK, total_norm
from tests.reference.rmsprop import RMSpropGroup, rmsprop
from tests.reference.sgd import SGDGroup, sgd
from tests.reference.storage import round_to
from tests.support.tensors import bounded

# All halves of a float32's bits, so that every exponent, tie and neighbour of a tie occurs.
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


def combinations(**values: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Every choice of one value per name."""
    return [dict(zip(values, choice, strict=True)) for choice in product(*values.values())]


BOOLS = (False, True)
DECAY = {"weight_decay": (0.0, 0.1), "maximize": BOOLS}
OF_SGD = combinations(momentum=(0.0, 0.9), dampening=(0.0, 0.3, 0.9), nesterov=BOOLS, **DECAY)
AGAINST_TORCH = {
    "RMSprop": (rmsprop, RMSpropGroup, combinations(
        alpha=(0.99, 0.5), eps=(1e-8, 0.1), momentum=(0.0, 0.9), centered=BOOLS, **DECAY
    )),
    "SGD": (sgd, SGDGroup, [
        o for o in OF_SGD if not o["nesterov"] or (o["momentum"] > 0 and o["dampening"] == 0)
    ]),
    "Adagrad": (adagrad, AdagradGroup, combinations(
        lr_decay=(0.0, 0.5), eps=(1e-10, 0.1), initial_accumulator_value=(0.0, 2.0), **DECAY
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", AGAINST_TORCH)
def test_rules_are_those_of_torch(name: str) -> None:
    rule, group_type, choices = AGAINST_TORCH[name]
    for options in choices:
        fields = {k: v for k, v in options.items() if k != "initial_accumulator_value"}
        follow_torch(getattr(torch.optim, name), options, rule, group_type(lr=0.05, **fields))


def follow_torch(theirs: type, options: dict[str, Any], rule: Callable, group: object) -> None:
    """Six steps of `rule` and of torch's class: parameter and states agree, in torch's order."""
    rng = np.random.default_rng(1)
    value = rng.standard_normal(7)
    param = torch.tensor(value, requires_grad=True)
    optimizer = theirs([param], lr=0.05, foreach=False, **options)
    states = [np.full(7, options.get("initial_accumulator_value", 0.0)) for _ in range(3)]
    for t in range(1, 7):
        grad = rng.standard_normal(7)
        param.grad = torch.tensor(grad / 2)
        optimizer.step()
        expected = {k: v for k, v in optimizer.state[param].items() if k != "step"}
        value, states = rule(value, grad, states[: len(expected)], t, group, 0.5)
        close = {"rtol": 1e-11, "atol": 1e-14, "err_msg": f"step {t}, {options}"}
        np.testing.assert_allclose(value, param.detach(), **close)
        for state, (key, tensor) in zip(states, expected.items(), strict=True):
            np.testing.assert_allclose(state, tensor, **close | {"err_msg": f"{key}, {options}"})


@pytest.mark.parametrize("maximize", BOOLS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.99), (0.95, 0.98), (0.0, 0.0)])
def test_lion_is_algorithm_2(
    beta1: float, beta2: float, weight_decay: float, maximize: bool
) -> None:
    rng = np.random.default_rng(2)
    group = LionGroup(0.05, beta1, beta2, weight_decay, maximize)
    param, m = rng.standard_normal(7), np.zeros(7)
    value, states = param, [m]
    for t in range(1, 7):
        grad = rng.standard_normal(7)
        value, states = lion(value, grad, states, t, group, 0.5)
        g = -grad / 2 if maximize else grad / 2
        c = beta1 * m + (1 - beta1) * g
        param = param - 0.05 * (np.sign(c) + weight_decay * param)
        m = beta2 * m + (1 - beta2) * g
        np.testing.assert_allclose(value, param, rtol=1e-12)
        np.testing.assert_allclose(states[0], m, rtol=1e-12)


def test_lion_moves_nothing_for_zero_and_keeps_nan() -> None:
    param = np.array([1.0, 1.0, np.nan], np.float32)
    grad, m = np.array([0.0, np.nan, 1.0], np.float32), np.zeros(3, np.float32)
    value, (m,) = lion(param, grad, [m], 1, LionGroup(lr=0.1))
    assert np.array_equal(value, np.array([1, np.nan, np.nan], np.float32), equal_nan=True)
    assert np.array_equal(np.isnan(m), [False, True, False])


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
