"""Every scheduler of torch.optim: the rates a fused optimizer applies are those of torch's."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isclass
from typing import Any

import pytest
import torch
from torch.optim import Optimizer, lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

from tests.support.optimizers import NAMESAKES, Kind, assert_same_run
from tests.support.tensors import copies, make_params, set_grads

STEPS = 12
SHARED = ("lr", "betas", "momentum")  # what a schedule may set in a group


def cycles(optimizer: Optimizer) -> bool:
    """Whether there is a momentum for the cyclic schedulers to cycle too."""
    return not {"betas", "momentum"}.isdisjoint(optimizer.defaults)


def exponential(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.ExponentialLR(optimizer, 0.7)


def warmup(optimizer: Optimizer) -> LRScheduler:
    return lr_scheduler.LinearLR(optimizer, total_iters=4)


SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 1 - 0.05 * step),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": warmup,
    "ExponentialLR": exponential,
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(o, [warmup(o), exponential(o)], [4]),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([warmup(o), exponential(o)]),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, 0.001, 0.1, step_size_up=3, cycle_momentum=cycles(o)
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=STEPS + 1, cycle_momentum=cycles(o)
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=5),
}
FOUND = [
    name
    for name, one in vars(lr_scheduler).items()
    if isclass(one) and issubclass(one, LRScheduler) and one.__name__.strip("_") != "LRScheduler"
]


# A rate that is a tensor is the scheduler's to write; the optimizers read it alike.
CASES = [(kind, float) for kind in NAMESAKES] + [(NAMESAKES[0], torch.tensor)]


@pytest.mark.filterwarnings("error")  # torch warns where it thinks that no step came before
@pytest.mark.parametrize("name", [*FOUND, "SWALR"])
@pytest.mark.parametrize(("kind", "rate"), CASES, ids=lambda case: getattr(case, "name", None))
def test_rates_applied_are_those_of_torch(
    kind: Kind, name: str, rate: Callable[[float], Any]
) -> None:
    """A third optimizer is given torch's rates by hand, as numbers: it must do the same."""
    if name not in SCHEDULERS:
        pytest.skip(f"this torch has {name}, for which this test has no arguments yet")
    params = make_params((30,), (4, 5))
    ours = kind.ours(params, lr=rate(0.01), max_norm=1.0)
    theirs = kind.torchs(copies(params), lr=rate(0.01))
    by_hand = kind.ours(copies(params), max_norm=1.0)
    schedules = [SCHEDULERS[name](optimizer) for optimizer in (ours, theirs)]
    rates = []
    for step in range(STEPS):
        (torchs,) = theirs.param_groups
        shared = {key: torchs[key] for key in SHARED if key in torchs}
        assert shared == {key: ours.param_groups[0][key] for key in shared}
        by_hand.param_groups[0].update(shared | {"lr": float(torchs["lr"])})
        rates.append(float(torchs["lr"]))
        for optimizer in (ours, theirs, by_hand):
            set_grads(optimizer.param_groups[0]["params"], seed=step)
            optimizer.step()
        assert_same_run(ours, by_hand)
        for schedule in schedules:
            metric = [1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []
            schedule.step(*metric)
    assert len(set(rates)) > 1  # there was something to follow
