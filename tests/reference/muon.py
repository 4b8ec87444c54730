"""The rule of kernels/optim/rules/muon.h: what comes before and after Muon's matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MuonGroup:
    """The hyperparameters of a parameter group, as the user gives them."""

    lr: float = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    maximize: bool = False


def muon_direction(
    grad: np.ndarray, buffer: np.ndarray, group: MuonGroup, multiplier: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """What is to be made orthogonal, and the momentum buffer after this update.

    `grad` and `buffer` are of one shape and type, float32 or float64; `grad` counts times
    `multiplier`. Nothing is written to.
    """
    T = grad.dtype.type
    keep, take = T(group.momentum), T(1 - group.momentum)
    with np.errstate(all="ignore"):
        grad = grad * T(-multiplier if group.maximize else multiplier)
        buffer = keep * buffer + take * grad
        return (keep * buffer + take * grad if group.nesterov else buffer), buffer


def muon_descent(
    param: np.ndarray, orthogonal: np.ndarray, ratio: float, group: MuonGroup
) -> np.ndarray:
    """The parameter after a step of `ratio` times the rate along `orthogonal`, of its type."""
    T = param.dtype.type
    with np.errstate(all="ignore"):
        return param * T(1 - group.lr * group.weight_decay) - T(group.lr * ratio) * orthogonal
