"""Stability thresholds: the formulas, and real optimizers on quadratics just below and above."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fusedstep
from fusedstep.dynamics import stability_threshold
from tests.support.refusals import refuses

# Gradients are tiny, so that the preconditioner is eps: constant, as the analysis takes it to be.
ONE = {"eps": 1.0}
CASES = {
    "SGD": ("SGD", {"lr": 0.1}, 20),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}, 38),
    "dampened": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.9}, 380),
    "negative dampening": ("SGD", {"lr": 0.1, "momentum": 0.5, "dampening": -0.5}, 20),
    "Nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 38 / 2.8),
    "RMSprop": ("RMSprop", {"lr": 0.01, **ONE}, 200),
    "RMSprop, momentum": ("RMSprop", {"lr": 0.01, "momentum": 0.8, **ONE}, 360),
    "Adagrad": ("Adagrad", {"lr": 0.01, **ONE}, 200),
    "Adam": ("Adam", {**ONE}, 38_000),
    "Adam, beta1": ("Adam", {"lr": 0.1, "betas": (0.5, 0.9), **ONE}, 60),
    "AdamW": ("AdamW", {"weight_decay": 0.0, **ONE}, 38_000),
}


def grows(make: type, options: dict, curvature: float) -> bool:
    """Whether the parameter of a quadratic is larger late in the run than in its middle."""
    w = nn.Parameter(torch.full((2,), 1e-150, dtype=torch.float64))
    opt = make([w], **options)
    largest = []
    for _ in range(2):
        sizes = []
        for _ in range(1200):
            w.grad = curvature * w.detach()
            opt.step()
            sizes.append(float(w.detach().abs().max()))
        largest.append(max(sizes[-50:]))
    return largest[1] > largest[0]


@pytest.mark.parametrize("package", [fusedstep, torch.optim], ids=["fusedstep", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_formula(case: str, package: object) -> None:
    name, options, expected = CASES[case]
    w = nn.Parameter(torch.ones(2))
    assert stability_threshold(getattr(package, name)([w], **options)) == pytest.approx(expected)


@pytest.mark.parametrize("case", CASES)
def test_a_quadratic_is_stable_below_and_grows_above(case: str) -> None:
    name, options, threshold = CASES[case]
    make = getattr(fusedstep, name)
    assert not grows(make, options, 0.99 * threshold)
    assert grows(make, options, 1.01 * threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_as_rate(dtype: torch.dtype) -> None:
    w = nn.Parameter(torch.ones(2))
    assert stability_threshold(fusedstep.SGD([w], lr=torch.tensor(0.5, dtype=dtype))) == 4


def test_no_rate_is_always_stable() -> None:
    assert stability_threshold(fusedstep.Adam([nn.Parameter(torch.ones(2))], lr=0.0)) == math.inf


def test_decoupled_decay_lowers_it_as_documented() -> None:
    options = {"lr": 0.1, "weight_decay": 0.4, **ONE}
    threshold = stability_threshold(fusedstep.AdamW([nn.Parameter(torch.ones(2))], **options))
    assert threshold == pytest.approx(380)
    lowered = threshold - 0.4 * 1.9 / 0.1  # by the factor 1 - lr weight_decay / 2
    assert lowered == pytest.approx(threshold * 0.98)
    assert not grows(fusedstep.AdamW, options, 0.99 * lowered)
    assert grows(fusedstep.AdamW, options, 1.01 * lowered)


@pytest.mark.parametrize("case", ["SGD", "momentum", "RMSprop", "Adagrad", "Adam, beta1"])
def test_coupled_decay_adds_to_the_curvature_as_documented(case: str) -> None:
    name, options, threshold = CASES[case]
    make, decay = getattr(fusedstep, name), threshold / 10
    options = options | {"weight_decay": decay}
    assert not grows(make, options, 0.99 * threshold - decay)
    assert grows(make, options, 1.01 * threshold - decay)


def test_groups_that_differ_in_decay_alone() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "weight_decay": d} for d in (0.0, 0.1)]
    assert stability_threshold(fusedstep.AdamW(groups, lr=1e-2)) == pytest.approx(3800)


def changed(make: type, **values: object) -> torch.optim.Optimizer:
    """An optimizer whose last group has values that its constructor would not take."""
    groups = [{"params": [nn.Parameter(torch.ones(2))]} for _ in range(2)]
    opt = make(groups, lr=0.1)
    opt.param_groups[1].update(values)
    return opt


W = nn.Parameter(torch.ones(2))
KINDS = "be Adam, AdamW, RMSprop, SGD or Adagrad, of fusedstep or torch"
MOMENTUM = {"momentum": 0.9, "dampening": 1.0}
REFUSED = [
    (lambda: fusedstep.Lion([W]), "optimizer", KINDS, "Lion", TypeError),
    (lambda: torch.optim.Rprop([W]), "optimizer", KINDS, "Rprop", TypeError),
    (lambda: 0.1, "optimizer", KINDS, "float", TypeError),
    (lambda: changed(fusedstep.SGD, lr=0.2), "param_groups", "have the same threshold",
     r"\[20.0, 10.0\]", ValueError),
    (lambda: changed(fusedstep.SGD, lr=math.nan), "param_groups[1]['lr']", "be 0 or more", "nan",
     ValueError),
    (lambda: changed(fusedstep.SGD, momentum=1.0), "param_groups[1]['momentum']", "be below 1",
     "1.0", ValueError),
    (lambda: changed(fusedstep.SGD, **MOMENTUM), "param_groups[1]['dampening']", "be below 1",
     "1.0", ValueError),
    (lambda: changed(fusedstep.Adam, betas=(1.0, 0.9)), "param_groups[1]['betas'][0]",
     "be at least 0 and below 1", "1.0", ValueError),
    (lambda: fusedstep.Adam([W], maximize=True), "param_groups[0]['maximize']", "be False", "True",
     ValueError),
]  # fmt: skip


@pytest.mark.parametrize(("make", "argument", "must", "got", "kind"), REFUSED)
def test_refusals(make, argument, must, got, kind):
    with refuses("stability_threshold", argument, must, got, kind):
        stability_threshold(make())
