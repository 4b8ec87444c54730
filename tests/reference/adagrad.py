"""The rule of kernels/optim/rules/adagrad.h: Adagrad on one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AdagradGroup:
    """The hyperparameters of a parameter group; the sum's initial value is in the states."""

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    eps: float = 1e-10
    maximize: bool = False


def adagrad(
    param: np.ndarray,
    grad: np.ndarray,
    states: list[np.ndarray],
    step: int,
    group: AdagradGroup,
    multiplier: float = 1.0,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The parameter and its states after update number `step` (1 at the first).

    `param`, `grad` and `states` (sum) are of one shape and type, float32 or float64; `grad` counts
    times `multiplier`. Nothing is written to.
    """
    T = param.dtype.type
    with np.errstate(all="ignore"):
        lr = T(group.lr / (1 + (step - 1) * group.lr_decay))
        grad = grad * T(-multiplier if group.maximize else multiplier)
        if T(group.weight_decay) != 0:
            grad = grad + T(group.weight_decay) * param
        total = states[0] + grad * grad
        return param - lr * (grad / (np.sqrt(total) + T(group.eps))), [total]
