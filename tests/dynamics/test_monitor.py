"""SharpnessMonitor in a plain loop; inside the trainers in tests/trainers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fusedstep
from fusedstep.dynamics import SharpnessMonitor, preconditioned_sharpness, stability_threshold
from tests.dynamics.problems import network
from tests.support.refusals import refuses


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop"])
def test_a_plain_loop(name: str) -> None:
    model, loss_fn = network(torch.float64)
    opt = getattr(fusedstep, name)(model.parameters(), lr=0.01)
    monitor = SharpnessMonitor(loss_fn, opt, every=3)
    expected = []
    for step in range(1, 11):
        opt.zero_grad()
        loss_fn().backward()
        opt.step()
        measured = monitor.step()
        assert (measured is None) == (step % 3 != 0)
        if measured is not None:
            assert measured is monitor.history[-1]
            expected.append((step, preconditioned_sharpness(opt, loss_fn)))
            assert measured.threshold == stability_threshold(opt)
    assert [m.step for m in monitor.history] == [3, 6, 9]
    assert [m.sharpness for m in monitor.history] == pytest.approx(
        [value for _, value in expected], rel=1e-10
    )


def test_it_does_not_change_the_run() -> None:
    runs = []
    for watched in (False, True):
        model, loss_fn = network(torch.float32)
        opt = fusedstep.Adam(model.parameters(), lr=0.01, state_dtype="int8")
        monitor = SharpnessMonitor(loss_fn, opt, every=1)
        for _ in range(5):
            opt.zero_grad()
            loss_fn().backward()
            opt.step()
            if watched:
                monitor.step()
        runs.append(list(model.parameters()))
    assert len(monitor.history) == 5
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


def test_warm_starts_take_fewer_products() -> None:
    model, loss_fn = network(torch.float64)
    calls = []

    def counted():
        calls.append(1)
        return loss_fn()

    opt = fusedstep.SGD(model.parameters(), lr=1e-4)
    monitor = SharpnessMonitor([counted, counted], opt, every=1)
    counts = []
    for _ in range(3):
        calls.clear()
        monitor.step()
        counts.append(len(calls))
        opt.zero_grad()
        loss_fn().backward()
        opt.step()
    assert max(counts[1:]) <= counts[0]


def test_measures_at_once_and_follows_a_loops_own_count() -> None:
    model, loss_fn = network(torch.float64)
    opt = fusedstep.SGD(model.parameters(), lr=0.01)
    monitor = SharpnessMonitor(loss_fn, opt, every=5)
    assert monitor.measure().step == 0
    assert monitor.reached(4) is None
    assert monitor.reached(5).step == 5
    assert monitor.reached(5) is None  # as while gradients accumulate
    assert [m.step for m in monitor.history] == [0, 5]


def test_parameters_that_are_trained_later() -> None:
    model, loss_fn = network(torch.float64)
    model[0].requires_grad_(False)
    opt = fusedstep.SGD(model.parameters(), lr=0.01)
    monitor = SharpnessMonitor(loss_fn, opt)
    for trained in (model[2], model):
        model.requires_grad_(False)
        trained.requires_grad_(True)
        expected = preconditioned_sharpness(opt, loss_fn)
        assert monitor.measure().sharpness == pytest.approx(expected, rel=1e-10)


def test_refusals() -> None:
    opt = fusedstep.Adam([nn.Parameter(torch.ones(2))])
    with refuses("SharpnessMonitor", "every", "be at least 1", "0", ValueError):
        SharpnessMonitor(lambda: None, opt, every=0)
    must = "be Adam, AdamW, RMSprop, SGD or Adagrad, of fusedstep or torch"
    with refuses("SharpnessMonitor", "optimizer", must, "Lion", TypeError):
        SharpnessMonitor(lambda: None, fusedstep.Lion([nn.Parameter(torch.ones(2))]))
    must = r"have taken a step with params\[0\]"
    with refuses("SharpnessMonitor", "optimizer", must, "no step", ValueError):
        SharpnessMonitor(lambda: None, opt).measure()
    with refuses("SharpnessMonitor", "optimizer", ".*", "NoneType", TypeError):
        SharpnessMonitor(lambda: None).measure()
