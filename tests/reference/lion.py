"""The rule of kernels/optim/rules/lion.h: Lion on one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LionGroup:
    """The hyperparameters of a parameter group, as the user gives them."""

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    maximize: bool = False


def lion(
    param: np.ndarray,
    grad: np.ndarray,
    states: list[np.ndarray],
    step: int,
    group: LionGroup,
    multiplier: float = 1.0,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The parameter and its states after update number `step`, on which nothing depends here.

    `param`, `grad` and `states` (exp_avg) are of one shape and type, float32 or float64; `grad`
    counts times `multiplier`. Nothing is written to. A NaN in `grad` or `states` stays a NaN.
    """
    T = param.dtype.type
    with np.errstate(all="ignore"):
        decay = T(1 - group.lr * group.weight_decay)
        grad = grad * T(-multiplier if group.maximize else multiplier)
        direction = T(group.beta1) * states[0] + T(1 - group.beta1) * grad
        direction = np.where(direction > 0, T(1), np.where(direction < 0, T(-1), direction))
        m = T(group.beta2) * states[0] + T(1 - group.beta2) * grad
        return param * decay - T(group.lr) * direction, [m]
