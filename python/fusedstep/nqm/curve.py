"""The mean loss of a rule after given numbers of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import numpy as np

from fusedstep.checks import refuse, require_beta, require_count
from fusedstep.nqm import adam
from fusedstep.nqm.affine import Power, State
from fusedstep.nqm.model import Array, Model, make_model, require_lr, require_sequence
from fusedstep.nqm.rules import limits, require_rule, step


def loss_curve(
    rule: str,
    *,
    batch_size: float,
    lr: float,
    steps: int | Sequence[int],
    momentum: float = 0.0,
    power: float = 0.0,
    dim: int = 10_000,
    bins: int | None = 100,
) -> Array:
    """Mean loss of the noisy quadratic model after some numbers of steps, at a constant rate.

    The mean over the start theta(0) ~ N(0, I) and all gradient noise, exact in float64. From one
    of the numbers of steps to the next takes as many small products as the difference has binary
    digits, however far it is; "adam" is simulated step by step.

    Args:
        rule: "sgd", "momentum", "ema" or "adam", as in `steps_to_target`.
        batch_size: B, at least 1. Infinite means no noise, but not for "adam".
        lr: Rate, above 0 and below the limit from which on the rule diverges: 2 over the largest
            curvature, 2 (1 + momentum) over it for "momentum", none for "adam".
        steps: Numbers of steps, each above the one before, the first at least 0; or a single number
            n for all of 0, 1, ... n.
        momentum: Of "momentum", or the decay of "ema": at least 0 and below 1. 0 for the others.
        power: p of the fixed preconditioner H^p, from 0 to 1; 0 for "adam".
        dim: Number of coordinates; their curvatures are 1 / i.
        bins: Number of geometric bins of the curvatures, at least 2, or None for all of them.

    Returns:
        A float64 array with a loss for each number of steps.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the rate diverges. The message is
            `loss_curve: <argument> must <property>, got <value>`.

    Example:
        >>> loss_curve("sgd", batch_size=1024, lr=1.668, steps=[0, 10_609, 10_610]).round(5)
        array([4.7025, 0.01  , 0.01  ])

    Source: Zhang et al. 2019, equations 3, 21 and 38, arXiv 1907.04164.
    """
    name = "loss_curve"
    model = make_model(name, batch_size=batch_size, power=power, dim=dim, bins=bins)
    rule = require_rule(name, rule, model)
    rates = np.array([require_lr(name, "lr", lr)])
    if rule in ("sgd", "adam") and momentum != 0:
        refuse(name, "momentum", f"be 0 for the rule {rule!r}", momentum)
    decays = np.array([require_beta(name, "momentum", momentum)])
    limit = limits(rule, model, decays)[0]
    if rates[0] >= limit:
        refuse(name, "lr", f"be below {limit:.6g}, where the loss starts to grow", lr)
    counts = require_steps(name, steps)
    if rule == "adam":
        return np.fromiter(adam.curve(model, float(rates[0]), counts), np.float64)
    return np.fromiter(_linear(rule, model, rates, decays, counts), np.float64)


def require_steps(name: str, steps: int | Sequence[int]) -> list[int]:
    """The numbers of steps, ascending."""
    if isinstance(steps, Integral):
        return list(range(require_count(name, "steps", steps) + 1))
    counts: list[int] = []
    for i, count in enumerate(require_sequence(name, "steps", steps)):
        least = counts[-1] + 1 if counts else 0
        counts.append(require_count(name, f"steps[{i}]", count, least))
    return counts


def _linear(
    rule: str, model: Model, lrs: Array, momenta: Array, counts: list[int]
) -> Iterator[float]:
    """The loss of the one pair after each number of steps."""
    powers = [Power.of(step(rule, model, lrs, momenta))]
    state, done = State.start(rule, (1, len(model.h))), 0
    for count in counts:
        missing, done = count - done, count
        for exponent in range(missing.bit_length()):
            if exponent == len(powers):
                powers.append(powers[-1].doubled())
            if missing >> exponent & 1:
                state = state.after(powers[exponent])
        yield float(state.loss(rule, model)[0])
