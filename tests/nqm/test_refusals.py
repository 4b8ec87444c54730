"""What the functions refuse, in one wording, before they compute anything."""

from __future__ import annotations

import math
import re
import sys

import pytest

from fusedstep.nqm import critical_batch_size, loss_curve, optimal_schedule, steps_to_target
from tests.support.refusals import refuses

NAN = math.nan
MODEL = [
    ({"batch_size": 0.5}, "batch_size", "be at least 1", "0.5", ValueError),
    ({"batch_size": NAN}, "batch_size", "be at least 1", "nan", ValueError),
    ({"batch_size": "4"}, "batch_size", "be a number", "str", TypeError),
    ({"power": -0.1}, "power", "be from 0 to 1", "-0.1", ValueError),
    ({"power": 1.5}, "power", "be from 0 to 1", "1.5", ValueError),
    ({"power": NAN}, "power", "be from 0 to 1", "nan", ValueError),
    ({"dim": 0}, "dim", "be at least 1", "0", ValueError),
    ({"dim": 2.0}, "dim", "be an int", "float 2.0", TypeError),
    ({"bins": 1}, "bins", "be at least 2", "1", ValueError),
]
TARGET = [
    ({"target": NAN}, "target", "be 0 or more", "nan", ValueError),
    ({"target": 0.0}, "target", "be above 0 and below the loss .*", "0.0", ValueError),
    ({"target": 5.0}, "target", r"be above 0 and below .* \(4.7025\)", "5.0", ValueError),
]
GRID = [
    ({"rule": "lion"}, "rule", "be one of 'sgd', 'momentum', 'ema', 'adam'", "'lion'", ValueError),
    ({"rule": []}, "rule", "be one of .*", r"\[\]", ValueError),
    ({"lrs": []}, "lrs", "have an entry", "none", ValueError),
    ({"lrs": 0.1}, "lrs", "be a sequence", "float", TypeError),
    ({"lrs": [0.1, NAN]}, "lrs[1]", "be 0 or more", "nan", ValueError),
    ({"lrs": [0.0]}, "lrs[0]", "be above 0", "0.0", ValueError),
    ({"lrs": [math.inf]}, "lrs[0]", "be finite", "inf", ValueError),
    ({"lrs": [2.0, 3.0]}, "lrs", "have a rate below 2, the limit .*", "2.0", ValueError),
    ({"momenta": [0.5]}, "momenta", "be None for the rule 'sgd'", r"\[0.5\]", ValueError),
    ({"rule": "ema", "momenta": []}, "momenta", "have an entry", "none", ValueError),
    ({"rule": "ema", "momenta": [1.0]}, "momenta[0]", "be at least 0 and .*", "1.0", ValueError),
    ({"rule": "adam", "power": 0.5}, "power", "be 0 for the rule 'adam'", "0.5", ValueError),
    ({"lrs": [1.0]}, "target", "be above 0.67.*, the least loss .* reach", "0.01", ValueError),
    ({"lrs": [1e-17]}, "target", "be above .*, the least loss .* reach", "0.01", ValueError),
    ({"rule": "adam", "lrs": [1.0]}, "target", "be above .*, the least .*", "0.01", ValueError),
]
CURVE = [
    ({"lr": 2.0}, "lr", "be below 2, where the loss starts to grow", "2.0", ValueError),
    ({"lr": NAN}, "lr", "be 0 or more", "nan", ValueError),
    ({"lr": 0.0}, "lr", "be above 0", "0.0", ValueError),
    ({"rule": "momentum", "momentum": 0.5, "lr": 3.0}, "lr", "be below 3, .*", "3.0", ValueError),
    ({"momentum": 0.5}, "momentum", "be 0 for the rule 'sgd'", "0.5", ValueError),
    ({"rule": "ema", "momentum": 1.0}, "momentum", "be at least 0 and .*", "1.0", ValueError),
    ({"steps": -1}, "steps", "be at least 0", "-1", ValueError),
    ({"steps": []}, "steps", "have an entry", "none", ValueError),
    ({"steps": [3, 3]}, "steps[1]", "be at least 4", "3", ValueError),
    ({"steps": 1.5}, "steps", "be a sequence", "float", TypeError),
]


def check(function, arguments, argument, must, got, kind):
    with refuses(function.__name__, argument, must, got, kind):
        function(**arguments)


@pytest.mark.parametrize(("changes", "argument", "must", "got", "kind"), [*MODEL, *TARGET, *GRID])
def test_steps_to_target(changes, argument, must, got, kind):
    arguments = {"rule": "sgd", "batch_size": 4} | changes
    check(steps_to_target, arguments, argument, must, got, kind)


@pytest.mark.parametrize(
    ("changes", "argument", "must", "got", "kind"), [*MODEL[3:], *TARGET, *GRID[:-3]]
)
def test_critical_batch_size(changes, argument, must, got, kind):
    check(critical_batch_size, {"rule": "sgd"} | changes, argument, must, got, kind)


@pytest.mark.parametrize(
    ("sizes", "argument", "must", "got"),
    [
        ((4, 0.5), "batch_sizes[1]", "be at least 1", "0.5"),
        ((4,), "batch_sizes", "have two entries", "1"),
        ((4, 4), "batch_sizes", "ascend", r"\(4.0, 4.0\)"),
    ],
)
def test_batch_sizes_of_critical_batch_size(sizes, argument, must, got):
    check(
        critical_batch_size, {"rule": "sgd", "batch_sizes": sizes}, argument, must, got, ValueError
    )


def test_adam_without_noise():
    must = "be finite for the rule 'adam'"
    arguments = {"rule": "adam", "batch_sizes": (4, math.inf)}
    check(critical_batch_size, arguments, "batch_sizes[1]", must, "inf", ValueError)
    arguments = {"rule": "adam", "batch_size": math.inf}
    check(steps_to_target, arguments, "batch_size", must, "inf", ValueError)


@pytest.mark.parametrize(("changes", "argument", "must", "got", "kind"), [*MODEL, *CURVE])
def test_loss_curve(changes, argument, must, got, kind):
    arguments = {"rule": "sgd", "batch_size": 4, "lr": 0.1, "steps": 3} | changes
    check(loss_curve, arguments, argument, must, got, kind)


@pytest.mark.parametrize(("changes", "argument", "must", "got", "kind"), [*MODEL, *TARGET])
def test_optimal_schedule(changes, argument, must, got, kind):
    check(optimal_schedule, {"batch_size": 4} | changes, argument, must, got, kind)


def test_pieces_of_optimal_schedule():
    check(
        optimal_schedule, {"batch_size": 4, "pieces": 0}, "pieces", "be at least 1", "0", ValueError
    )


def test_optimal_schedule_names_the_extra_with_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    message = re.escape("optimal_schedule: needs SciPy: pip install 'fusedstep[nqm]'")
    with pytest.raises(ModuleNotFoundError, match=message):
        optimal_schedule(batch_size=4)
