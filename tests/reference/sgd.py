"""The rule of kernels/optim/rules/sgd.h: descent with momentum, dampening and Nesterov's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SGDGroup:
    """The hyperparameters of a parameter group, as the user gives them."""

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False


def sgd(
    param: np.ndarray,
    grad: np.ndarray,
    states: list[np.ndarray],
    step: int,
    group: SGDGroup,
    multiplier: float = 1.0,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The parameter and its states after the momentum's update number `step` (1 at the first).

    `param`, `grad` and `states` (momentum_buffer; nothing where momentum is 0) are of one shape and
    type, float32 or float64; `grad` counts times `multiplier`. Nothing is written to.
    """
    T = param.dtype.type
    with np.errstate(all="ignore"):
        grad = grad * T(-multiplier if group.maximize else multiplier)
        if T(group.weight_decay) != 0:
            grad = grad + T(group.weight_decay) * param
        if group.momentum == 0:
            return param - T(group.lr) * grad, []
        keep, take = (0.0, 1.0) if step == 1 else (group.momentum, 1 - group.dampening)
        buffer = T(keep) * states[0] + T(take) * grad
        direction = grad + T(group.momentum) * buffer if group.nesterov else buffer
        return param - T(group.lr) * direction, [buffer]
