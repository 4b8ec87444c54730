"""The rule of kernels/optim/rules/rmsprop.h: RMSprop, centered or not, with momentum or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RMSpropGroup:
    """The hyperparameters of a parameter group, as the user gives them."""

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    maximize: bool = False


def rmsprop(
    param: np.ndarray,
    grad: np.ndarray,
    states: list[np.ndarray],
    step: int,
    group: RMSpropGroup,
    multiplier: float = 1.0,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The parameter and its states after update number `step`, on which nothing depends here.

    `param`, `grad` and `states` (square_avg, then with momentum > 0 momentum_buffer, then where
    centered grad_avg) are of one shape and type, float32 or float64; `grad` counts times
    `multiplier`. Nothing is written to. Centered: a variance that rounding makes negative is 0.
    """
    T = param.dtype.type
    new_states = list(states)
    with np.errstate(all="ignore"):
        grad = grad * T(-multiplier if group.maximize else multiplier)
        if T(group.weight_decay) != 0:
            grad = grad + T(group.weight_decay) * param
        second_moment = T(group.alpha) * states[0] + T(1 - group.alpha) * grad * grad
        new_states[0] = second_moment
        if group.centered:
            mean = states[-1] + T(1 - group.alpha) * (grad - states[-1])
            variance = second_moment - mean * mean
            second_moment = np.where(variance < 0, T(0), variance)
            new_states[-1] = mean
        direction = grad / (np.sqrt(second_moment) + T(group.eps))
        if group.momentum > 0:
            direction = T(group.momentum) * states[1] + direction
            new_states[1] = direction
        return param - T(group.lr) * direction, new_states
