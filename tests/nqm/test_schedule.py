"""The optimal schedule: exact gradients, bounds, use in piecewise_constant, a real training."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

import fusedstep
from fusedstep.nqm import optimal_schedule, steps_to_target
from fusedstep.nqm.model import make_model
from fusedstep.nqm.schedule import (
    _geometric,
    _lengths,
    _minimized,
    final_loss,
    least_steps,
)
from fusedstep.schedules import Scheduler, piecewise_constant

pytest.importorskip("scipy", reason="needs the nqm extra: scipy")


def model_of(batch_size: float = 4, dim: int = 10_000, power: float = 0.0, bins: int | None = 100):
    return make_model("test", batch_size=batch_size, power=power, dim=dim, bins=bins)


@pytest.mark.parametrize("power", [0.0, 0.5])
@pytest.mark.parametrize("lengths", [[1, 2, 3, 1000, 100_000], [30_000] * 5, [1]])
@pytest.mark.parametrize("middle", [-9.0, -3.0, -1.0])
def test_the_gradient_is_that_of_the_loss(middle, lengths, power):
    model, rng = model_of(power=power), np.random.default_rng(0)
    logs = np.minimum(middle + rng.standard_normal(len(lengths)), math.log(2 / model.sharpest))
    lengths = np.array(lengths)
    _, gradient = final_loss(model, lengths, logs)
    step = 1e-6
    differences = [
        (final_loss(model, lengths, logs + e)[0] - final_loss(model, lengths, logs - e)[0])
        / (2 * step)
        for e in step * np.eye(len(logs))
    ]
    noise = 2e-9 + 1e-7 * abs(gradient).max()  # of the differences
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=noise)


def test_geometric_sums_keep_their_digits_on_both_sides_of_the_series():
    n = np.array([1.0, 2.0, 5.0, 400.0])[:, None]
    left = np.array([0.0, 1e-15, 1e-9, 1e-6, 7e-6, 8e-6, 1e-3, 0.3, 1.0])
    kept, before, total, slope = _geometric(left, n)
    k = np.arange(400)[:, None, None]
    powers = np.where(k < n, (1 - left) ** k, 0)
    np.testing.assert_allclose(kept, (1 - left) ** n, rtol=1e-12)
    np.testing.assert_allclose(before, (1 - left) ** (n - 1), rtol=1e-12)
    np.testing.assert_allclose(total, powers.sum(0), rtol=1e-12)
    expected = (np.where(k < n - 1, (1 - left) ** k, 0) * (k + 1)).sum(0)
    np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-14)


def test_the_loss_of_a_schedule_is_the_recursion():
    model, lengths, lrs = model_of(8, 30, bins=None), np.array([3, 1, 5]), np.array([2.0, 0.5, 1.0])
    s = np.ones(30)
    for lr in np.repeat(lrs, lengths):
        s = (1 - lr * model.h) ** 2 * s + lr**2 * model.h / 8
    loss, _ = final_loss(model, lengths, np.log(lrs))
    assert loss == pytest.approx(0.5 * (model.h * s).sum(), rel=1e-13)


@pytest.mark.parametrize("batch_size", [1, 8, 1024, math.inf])
def test_it_is_between_the_bound_and_the_best_constant_rate(batch_size):
    small = {"batch_size": batch_size, "dim": 200, "target": 0.05}
    schedule = optimal_schedule(pieces=10, **small)
    constant = steps_to_target("sgd", **small).steps + 1
    model = model_of(batch_size, 200)
    bound = 1 if batch_size == math.inf else least_steps(model, 0.05)
    assert bound <= schedule.steps <= constant
    lengths = np.diff([0, *schedule.boundaries, schedule.steps])
    assert max(lengths) - min(lengths) <= 1
    assert 0 < min(schedule.lrs) <= max(schedule.lrs) <= 2
    assert final_loss(model, lengths, np.log(schedule.lrs))[0] < 0.05


def test_no_schedule_beats_the_bound_and_long_runs_approach_dim_over_2_target_batch():
    assert least_steps(model_of(4), 0.01) == pytest.approx(10_000 / (2 * 0.01 * 4), rel=0.02)
    model, rng = model_of(4, 50, bins=None), np.random.default_rng(0)
    bound = least_steps(model, 0.05)
    for _ in range(20):  # the best rates for one curvature alone are 1 / (h + 1 / (B E theta^2))
        s, h, place = np.ones(50), model.h, rng.integers(50)
        for _ in range(bound - 1):
            lr = min(2.0, 1 / (h[place] + 1 / (4 * s[place])))
            s = (1 - lr * h) ** 2 * s + lr**2 * h / 4
        assert 0.5 * (h * s).sum() > 0.05


@pytest.mark.slow
def test_at_batch_size_4_it_takes_an_eighth_of_the_steps_of_the_best_constant_rate():
    schedule = optimal_schedule(batch_size=4)
    assert len(schedule.lrs) == 50
    assert schedule.steps < 1_508_043 / 7.5
    assert schedule.steps < 1.6 * 10_000 / (2 * 0.01 * 4)


@pytest.mark.parametrize("start", [-5.0, -1.0, 0.5])
def test_where_the_search_starts_makes_no_difference(start):
    from scipy.optimize import minimize

    schedule, model = optimal_schedule(batch_size=64, pieces=10), model_of(64)
    lengths = _lengths(schedule.steps, 10)
    best, _ = _minimized(minimize, model, lengths, np.log(schedule.lrs))
    loss, _ = _minimized(minimize, model, lengths, np.full(10, start))
    assert loss == pytest.approx(best, rel=1e-6)
    less, _ = _minimized(
        minimize, model, _lengths(round(0.999 * schedule.steps), 10), start * np.ones(10)
    )
    assert less > 0.01


def test_a_target_below_all_of_the_notebooks_constant_rates():
    small = {"batch_size": 1, "dim": 10, "target": 1e-6, "bins": None}
    assert optimal_schedule(pieces=3, **small).steps > least_steps(model_of(1, 10, bins=None), 1e-6)


def test_more_pieces_than_steps():
    schedule = optimal_schedule(batch_size=math.inf, dim=3, bins=None, target=0.1, pieces=50)
    assert schedule.steps == len(schedule.lrs) < 50
    assert schedule.boundaries == tuple(range(1, schedule.steps))


def test_it_trains_a_linear_model_to_the_predicted_loss():
    # Fixed features with second moments 1 / i and fresh label noise in every batch: the noisy
    # quadratic model, as it occurs in training. 256 outputs are as many runs of it.
    dim, batch, outputs, target = 64, 128, 256, 0.05
    schedule = optimal_schedule(batch_size=batch, dim=dim, bins=None, target=target, pieces=8)
    generator = torch.Generator().manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(batch, dim, generator=generator)).Q
    features = orthogonal * (batch / torch.arange(1, dim + 1)).sqrt()
    truth = torch.randn(outputs, dim, generator=generator)

    def train(rate) -> float:
        layer = torch.nn.Linear(dim, outputs, bias=False)
        torch.nn.init.zeros_(layer.weight)
        optimizer = fusedstep.SGD(layer.parameters(), lr=1.0)
        scheduler = Scheduler(optimizer, rate)
        for _ in range(schedule.steps):
            labels = features @ truth.T + torch.randn(batch, outputs, generator=generator)
            loss = 0.5 * (layer(features) - labels).square().mean(0).sum()
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        error = (layer(features).detach() - features @ truth.T).square()
        return float(0.5 * error.mean())

    staircase = functools.partial(
        piecewise_constant, boundaries=schedule.boundaries, values=schedule.lrs
    )
    constant = steps_to_target("sgd", batch_size=batch, dim=dim, bins=None, target=target)
    scheduled = train(staircase)
    assert scheduled == pytest.approx(target, rel=0.1)
    assert train(lambda step: constant.lr) > 1.2 * scheduled
