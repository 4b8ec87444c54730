"""Mean losses: against the paper's recursions, step by step, and against samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusedstep.nqm import loss_curve
from tests.nqm import published

RULES = (("sgd", 0.0), ("momentum", 0.9), ("ema", 0.95))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [1, 64, 1e9])
@pytest.mark.parametrize(("rule", "m"), RULES)
def test_the_recursion_of_the_paper(rule, m, batch_size, power):
    curve = loss_curve(rule, batch_size=batch_size, lr=0.1, momentum=m, power=power, steps=300)
    expected = published.losses(rule, *published.binned(), batch_size, 0.1, m, 300, power)
    np.testing.assert_allclose(curve, expected, rtol=1e-11)


@pytest.mark.parametrize(("rule", "m"), RULES)
def test_any_numbers_of_steps_are_those_of_the_whole_curve(rule, m):
    setting = {"batch_size": 16, "lr": 0.2, "momentum": m, "dim": 40, "bins": None}
    whole = loss_curve(rule, steps=1000, **setting)
    some = [0, 1, 7, 64, 65, 999, 1000]
    np.testing.assert_allclose(loss_curve(rule, steps=some, **setting), whole[some], rtol=1e-12)


@pytest.mark.parametrize("lr", [0.01, 0.25, 0.81])
def test_momentum_where_the_transition_is_defective(lr):
    # With h = 1 and m = (1 - sqrt(x))^2 both eigenvalues are 1 - sqrt(x), with one eigenvector.
    m = (1 - math.sqrt(lr)) ** 2
    transition = published.matrices("momentum", np.array([lr]), m)[0][0]
    assert np.linalg.cond(np.linalg.eig(transition)[1]) > 1e6  # what it would be divided by
    curve = loss_curve("momentum", batch_size=8, lr=lr, momentum=m, steps=500, dim=1, bins=None)
    expected = published.losses("momentum", np.ones(1), np.ones(1), 8, lr, m, 500)
    np.testing.assert_allclose(curve, expected, rtol=1e-12)


@pytest.mark.parametrize("m", [0.9, 0.99999])
def test_millions_of_steps_keep_their_digits(m):
    # The slowest coordinate has x = 1e-12: of 1 - x, rounded, only four digits of x are left.
    steps = 3_000_000
    setting = {"batch_size": math.inf, "lr": 1e-8, "momentum": m, "dim": 10_000, "bins": 2}
    loss = loss_curve("momentum", steps=[steps], **setting)[0]
    expected = 0.0
    for h, count in ((1.0, 1), (1e-4, 9999)):
        # Without noise theta is a sum of (1 - r)^t over the roots of r^2 - (1 - m + x) r + x.
        x = 1e-8 * h
        half = (1 - m + x) / 2
        fast = half + np.emath.sqrt(half**2 - x)
        slow = x / fast
        share = (fast - x) / (fast - slow)  # theta(0) = 1, theta(1) = 1 - x
        theta = [np.exp(steps * np.log1p(-root)) for root in (slow, fast)]
        expected += 0.5 * count * h * np.real(share * theta[0] + (1 - share) * theta[1]) ** 2
    assert loss == pytest.approx(expected, rel=1e-9)


def step_of(rule, lr, m):
    """One step of every sample in place of moments: returns what carries them on."""

    def sgd(state, g):
        return [state[0] - lr * g]

    def momentum(state, g):
        v = m * state[1] - lr * g
        return [state[0] + v, v]

    def ema(state, g):
        theta = state[0] - lr * g
        return [theta, m * state[1] + (1 - m) * theta]

    def adam(state, g):
        return [state[0] - lr * g / np.sqrt((g**2).mean(0))]

    return {"sgd": sgd, "momentum": momentum, "ema": ema, "adam": adam}[rule]


@pytest.mark.parametrize(("rule", "m"), [*RULES, ("adam", 0.0)])
def test_samples_have_this_mean_loss(rule, m):
    samples, dim, batch_size, lr, steps = 20_000, 12, 4, 0.1, 40
    rng, h = np.random.default_rng(0), 1 / np.arange(1, dim + 1)
    theta = rng.standard_normal((samples, dim))
    state, step = [theta, theta if rule == "ema" else 0 * theta], step_of(rule, lr, m)
    for _ in range(steps):
        noise = np.sqrt(h / batch_size) * rng.standard_normal(theta.shape)
        state = step(state, h * state[0] + noise)
    losses = 0.5 * (h * state[1 if rule == "ema" else 0] ** 2).sum(1)
    error = losses.std() / math.sqrt(samples)
    expected = loss_curve(
        rule, batch_size=batch_size, lr=lr, momentum=m, steps=[0, steps], dim=dim, bins=None
    )
    assert abs(losses.mean() - expected[1]) < 4 * error
    assert error < 0.02 * expected[1]
    assert expected[1] < 0.8 * expected[0]
