"""The curvature above which an optimizer diverges on a quadratic."""

from __future__ import annotations

import math
from typing import Any

from fusedstep.checks import refuse
from fusedstep.dynamics.optimizers import rate_of, rule_of
from fusedstep.optim.hyperparameters import Group, betas, flag, label, numbers, signed


def stability_threshold(optimizer: Any) -> float:
    """The largest preconditioned curvature at which an optimizer's step is stable.

    On a quadratic loss whose `preconditioned_sharpness` stays below it the parameters converge;
    above it they oscillate and grow. With the learning rate `lr`:

    | rule | threshold | source |
    | --- | --- | --- |
    | SGD | 2 / lr | Cohen et al. 2021, section 2 |
    | momentum b, dampening d | 2 (1 + b) / ((1 - d) lr) | 2021, equation 1, for d = 0 |
    | Nesterov's momentum b | 2 (1 + b) / ((1 + 2 b) lr) | 2021, equation 1 |
    | RMSprop, Adagrad | 2 / lr; with momentum b 2 (1 + b) / lr | 2022, section 2 |
    | Adam, AdamW | 2 (1 + beta1) / ((1 - beta1) lr), 38 / lr by default | 2022, section 2 |

    Weight decay is left out. Coupled decay (Adam, RMSprop, SGD, Adagrad) is part of the loss: it
    adds `weight_decay` to the curvature; put it into `loss_fn` to have it counted. AdamW's
    decoupled decay multiplies the threshold by `1 - lr weight_decay / 2`: at its defaults by
    1 - 5e-6.

    Args:
        optimizer: An Adam, AdamW, RMSprop, SGD or Adagrad of fusedstep or torch. Its groups must
            have the same threshold.

    Returns:
        The threshold now, with the rate that the next step uses; infinite where that is 0.

    Raises:
        TypeError: Another optimizer, or a value of the wrong type.
        ValueError: The groups have different thresholds, or an optimizer is never stable. The
            message is `stability_threshold: <argument> must <property>, got <value>`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> round(stability_threshold(fusedstep.SGD([w], lr=0.1, momentum=0.9)), 9)
        38.0
        >>> round(stability_threshold(fusedstep.Adam([w], lr=1e-3)), 6)
        38000.0

    Source: Cohen et al. 2021, arXiv 2103.00065; Cohen et al. 2022, arXiv 2207.14484. Each follows
    from the roots of the step's characteristic polynomial: -1 is one at the threshold.
    """
    name = "stability_threshold"
    rule = rule_of(name, optimizer)
    limits = []
    for g, group in enumerate(optimizer.param_groups):
        factor = FACTORS[rule](name, group, g)
        lr = rate_of(name, group, g)
        limits.append(factor / lr if lr > 0 else math.inf)
    if any(limit != limits[0] for limit in limits):
        refuse(name, "param_groups", "have the same threshold", limits)
    return limits[0]


def _adam(function: str, group: Group, index: int) -> float:
    beta1 = betas(function, group, index)["beta1"]
    return 2 * (1 + beta1) / (1 - beta1)


def _rmsprop(function: str, group: Group, index: int) -> float:
    return 2 * (1 + _momentum(function, group, index))


def _sgd(function: str, group: Group, index: int) -> float:
    """Dampening multiplies all gradients but the first; Nesterov's adds one undampened."""
    momentum = _momentum(function, group, index)
    share = 1 - signed(function, group, index, "dampening") if momentum else 1.0
    if flag(function, group, index, "nesterov") and momentum:
        share = 1 + momentum + momentum * share
        return 2 * (1 + momentum) / share
    if not share > 0:
        refuse(function, label(index, "dampening"), "be below 1", group["dampening"])
    return 2 * (1 + momentum) / share


def _adagrad(function: str, group: Group, index: int) -> float:
    return 2.0


def _momentum(function: str, group: Group, index: int) -> float:
    momentum = numbers(function, group, index, ("momentum",))["momentum"]
    if momentum >= 1:
        refuse(function, label(index, "momentum"), "be below 1", momentum)
    return momentum


FACTORS = {"Adam": _adam, "RMSprop": _rmsprop, "SGD": _sgd, "Adagrad": _adagrad}
