"""The rules as maps of one coordinate: what a step does to it, written once for all functions.

A rule is linear in its state z, which holds theta and, with two entries, the velocity or the
average of the weights. A step is z' = A z + b xi with xi ~ N(0, 1). Mean squares follow from that
alone: after t steps z = A^t z(0) plus noise of covariance S_t, where S_(t+1) = A S_t A^T + b b^T.
The paper's matrices (equations 3, 21 and 38) are A's action on the entries of z z^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedstep.checks import refuse, require_beta
from fusedstep.nqm.model import Array, Model, require_lr, require_sequence


@dataclass(frozen=True)
class Form:
    """A linear rule, given x (the rate times the curvature) and m (its momentum or decay).

    Attributes:
        change: A - I as a matrix of arrays. A itself would round 1 - x, and with that the time
            of slow coordinates: 1e-12 of x would be lost in part, or all of it.
        noise: b, over the standard deviation of the rate times the gradient.
        start: z(0) over theta(0).
        read: The entry of z whose loss counts.
        limit: The largest x, not included, at which coordinates do not diverge.
    """

    change: Callable[[Array, Array], list[list[Array]]]
    noise: Callable[[Array], list[Array]]
    start: tuple[float, ...]
    read: int
    limit: Callable[[Array], Array]


# theta' = theta - lr g
SGD = Form(
    change=lambda x, m: [[-x]],
    noise=lambda m: [np.ones_like(m)],
    start=(1.0,),
    read=0,
    limit=lambda m: np.full_like(m, 2.0),
)
# v' = m v - lr g, theta' = theta + v'; z = (theta, v). Equation 21.
MOMENTUM = Form(
    change=lambda x, m: [[-x, m], [-x, m - 1]],
    noise=lambda m: [np.ones_like(m), np.ones_like(m)],
    start=(1.0, 0.0),
    read=0,
    limit=lambda m: 2 * (1 + m),
)
# theta' = theta - lr g, e' = m e + (1 - m) theta'; z = (theta, e). Equation 38, where the sum is
# not normalized and the loss is scaled by (1 - m)^2 instead.
EMA = Form(
    change=lambda x, m: [[-x, np.zeros_like(m)], [(1 - m) * (1 - x), m - 1]],
    noise=lambda m: [np.ones_like(m), 1 - m],
    start=(1.0, 1.0),
    read=1,
    limit=lambda m: np.full_like(m, 2.0),
)
LINEAR = {"sgd": SGD, "momentum": MOMENTUM, "ema": EMA}
RULES = (*LINEAR, "adam")

# The grids of the paper's notebook; it has none for Adam.
_LRS = {"sgd": np.logspace(-5, 0.5, 100), "adam": np.logspace(-5, 0.5, 100)}
_LRS |= {"momentum": np.logspace(-8, 1, 100), "ema": np.logspace(-8, 1, 100)}
_MOMENTA = 1 - np.logspace(-5, 0, 20)


def require_rule(function: str, rule: Any, model: Model, batch_size: str = "batch_size") -> str:
    """One of RULES; Adam has a preconditioner of its own, which without noise is not finite."""
    if rule not in RULES:
        refuse(function, "rule", f"be one of {', '.join(map(repr, RULES))}", repr(rule))
    if rule == "adam" and model.power != 0:
        refuse(function, "power", "be 0 for the rule 'adam'", model.power)
    if rule == "adam" and model.batch_size == math.inf:
        refuse(function, batch_size, "be finite for the rule 'adam'", model.batch_size)
    return str(rule)


def require_pairs(function: str, rule: str, lrs: Any, momenta: Any) -> tuple[Array, Array]:
    """Every rate with every momentum, rates outermost; the notebook's grids where None."""
    if lrs is None:
        rates = _LRS[rule]
    else:
        given = require_sequence(function, "lrs", lrs)
        rates = np.array([require_lr(function, f"lrs[{i}]", lr) for i, lr in enumerate(given)])
    if rule in ("sgd", "adam"):
        if momenta is not None:
            refuse(function, "momenta", f"be None for the rule {rule!r}", momenta)
        decays = np.zeros(1)
    elif momenta is None:
        decays = _MOMENTA
    else:
        given = require_sequence(function, "momenta", momenta)
        names = ((f"momenta[{i}]", m) for i, m in enumerate(given))
        decays = np.array([require_beta(function, name, m) for name, m in names])
    pairs = np.meshgrid(rates, decays, indexing="ij")
    return pairs[0].ravel(), pairs[1].ravel()


@dataclass(frozen=True)
class Step:
    """One step of a linear rule: z' = z + change z + noise xi, for pairs and curvatures.

    Attributes:
        change: [n, n, pairs, curvatures].
        noise: [n, pairs, curvatures].
    """

    change: Array
    noise: Array


def step(rule: str, model: Model, lrs: Array, momenta: Array) -> Step:
    """The step of a linear rule for each pair of a rate and a momentum."""
    form, lr, m = LINEAR[rule], lrs[:, None] * model.scale, momenta[:, None]
    x = lr * model.h
    change = [[np.broadcast_to(one, x.shape) for one in row] for row in form.change(x, m)]
    noise = lrs[:, None] * model.noise
    return Step(np.array(change), np.array([noise * factor for factor in form.noise(m)]))


def limits(rule: str, model: Model, momenta: Array) -> Array:
    """The rates from which on some coordinate diverges; Adam's steps are bounded at any rate."""
    if rule == "adam":
        return np.full_like(momenta, np.inf)
    return LINEAR[rule].limit(momenta) / model.sharpest
