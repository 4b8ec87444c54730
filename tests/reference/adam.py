"""The rule of kernels/optim/rules/adam.h: Adam, AdamW and amsgrad on one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AdamGroup:
    """The hyperparameters of a parameter group, as the user gives them; `decoupled`: AdamW."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2
    decoupled: bool = True
    maximize: bool = False
    amsgrad: bool = False


def power(base: float, exponent: int) -> float:
    """base^exponent by repeated squaring: kernels/optim/rules/adam.h."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def adam(
    param: np.ndarray,
    grad: np.ndarray,
    states: list[np.ndarray],
    step: int,
    group: AdamGroup,
    multiplier: float = 1.0,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The parameter and its states after update number `step` (1 at the first).

    `param`, `grad` and `states` (exp_avg, exp_avg_sq and, with amsgrad, max_exp_avg_sq) are of one
    shape and type, float32 or float64; `grad` counts times `multiplier`. Nothing is written to.
    """
    T = param.dtype.type
    correction1 = 1 - power(group.beta1, step)
    correction2 = 1 - power(group.beta2, step)
    with np.errstate(all="ignore"):
        step_size = T(group.lr / correction1)
        inverse_sqrt_correction = T(1 / math.sqrt(correction2))
        decay = T(1 - group.lr * group.weight_decay) if group.decoupled else T(1)

        grad = grad * T(-multiplier if group.maximize else multiplier)
        if not group.decoupled and group.weight_decay != 0:
            grad = grad + T(group.weight_decay) * param
        m = T(group.beta1) * states[0] + T(1 - group.beta1) * grad
        v = T(group.beta2) * states[1] + T(1 - group.beta2) * grad * grad
        new_states, second_moment = [m, v], v
        if group.amsgrad:
            second_moment = np.where(states[2] >= v, states[2], v)
            new_states.append(second_moment)
        denominator = np.sqrt(second_moment) * inverse_sqrt_correction + T(group.eps)
        return param * decay - step_size * (m / denominator), new_states
