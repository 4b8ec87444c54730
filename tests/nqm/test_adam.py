"""Adam in the model: its recursion, where it comes to rest, its race against the whole grid."""

from __future__ import annotations

import numpy as np
import pytest

from fusedstep.nqm import adam, loss_curve, steps_to_target
from fusedstep.nqm.model import make_model
from tests.support.refusals import refuses


@pytest.mark.parametrize("batch_size", [1, 1024, 2**30])
def test_the_recursion_in_mean_squares(batch_size):
    h, s, lr = 1 / np.arange(1, 41), np.ones(40), 0.02
    curve = loss_curve("adam", batch_size=batch_size, lr=lr, steps=200, dim=40, bins=None)
    for t in range(201):
        assert curve[t] == pytest.approx(0.5 * (h * s).sum(), rel=1e-11)
        preconditioner = 1 / np.sqrt(h**2 * s + h / batch_size)
        s = (1 - lr * preconditioner * h) ** 2 * s + (lr * preconditioner) ** 2 * h / batch_size


def test_it_comes_to_rest_at_the_final_loss():
    model = make_model("test", batch_size=64, power=0.0, dim=100, bins=None)
    lrs = np.array([0.003, 0.03])
    ends = [
        loss_curve("adam", batch_size=64, lr=lr, steps=[20_000], dim=100, bins=None)[0]
        for lr in lrs
    ]
    np.testing.assert_allclose(adam.final_losses(model, lrs), ends, rtol=1e-9)


def test_the_race_finds_the_best_of_the_whole_grid(monkeypatch):
    small = {"batch_size": 16, "dim": 100, "target": 0.05}
    found = steps_to_target("adam", **small)
    alone = {}
    for lr in np.logspace(-3, 0.5, 64):
        try:
            alone[lr] = steps_to_target("adam", lrs=[lr], **small).steps
        except ValueError:  # it comes to rest above the target
            continue
    assert min(alone.values()) >= 0.98 * found.steps
    monkeypatch.setattr(adam, "_least_losses", lambda model, lrs, steps: np.zeros(len(lrs)))
    assert steps_to_target("adam", **small) == found  # nothing left out


def test_a_small_batch_is_a_fixed_preconditioner_of_the_root():
    # Where noise dominates the gradient, 1 / sqrt(h / B) is the preconditioner of p = 1/2.
    adaptive = steps_to_target("adam", batch_size=8, dim=100, target=0.05)
    fixed = steps_to_target("sgd", power=0.5, batch_size=8, dim=100, target=0.05)
    assert adaptive.steps == pytest.approx(fixed.steps, rel=0.2)


def test_a_simulation_ends(monkeypatch):
    monkeypatch.setattr(adam, "MOST_STEPS", 5000)
    must = "have one that reaches the target within 5000 steps"
    with refuses("steps_to_target", "lrs", must, "1e-05", ValueError):
        steps_to_target("adam", batch_size=16, dim=100, target=0.05, lrs=[1e-5, 1e-6])
