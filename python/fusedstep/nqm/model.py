"""The noisy quadratic model: its curvatures, its noise, and the checks of its arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep.checks import refuse, require_count, require_number, require_rate

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Model:
    """L(theta) = 1/2 sum_i h_i theta_i^2 with theta(0) ~ N(0, I) and noisy gradients.

    The gradient of coordinate i is h_i theta_i plus noise of variance h_i / B: the covariance of
    one example's gradient is the Hessian (Zhang et al. 2019, arXiv 1907.04164, section 3). The
    coordinates never mix, so `count` of them with the same curvature are one line of the arrays.

    Attributes:
        h: Curvatures, descending.
        count: Number of coordinates with each curvature.
        batch_size: B, at least 1; infinite without noise.
        power: p of the fixed preconditioner H^p, which divides the rate of coordinate i by h_i^p.
    """

    h: Array
    count: Array
    batch_size: float
    power: float = 0.0

    @property
    def weight(self) -> Array:
        """The loss is `weight` times the mean of theta^2, summed."""
        return 0.5 * self.count * self.h

    @property
    def initial_loss(self) -> float:
        """The mean loss before the first step, where the mean of every theta^2 is 1."""
        return float(self.weight.sum())

    @property
    def scale(self) -> Array:
        """What the fixed preconditioner multiplies the rate with."""
        return self.h**-self.power

    @property
    def sharpest(self) -> float:
        """The largest preconditioned curvature: a rate of 2 over it is the limit for SGD."""
        return float((self.h * self.scale).max())

    @property
    def noise(self) -> Array:
        """The standard deviation of each gradient, times the preconditioner."""
        return np.sqrt(self.h / self.batch_size) * self.scale

    def at(self, batch_size: float) -> Model:
        """The same model with another batch size."""
        return replace(self, batch_size=batch_size)


def make_model(function: str, *, batch_size: Any, power: Any, dim: Any, bins: Any) -> Model:
    """The model with h_i = 1 / i, i = 1 ... dim, exact (`bins` None) or in geometric bins.

    The bins are the paper's: curvatures from 1 to 1 / dim in geometric progression, each standing
    for the exact ones between it and the one before, rounded down to it.
    """
    dim = require_count(function, "dim", dim, least=1)
    exact = 1 / np.arange(1, dim + 1)
    if bins is None:
        h, count = exact, np.ones(dim)
    else:
        bins = require_count(function, "bins", bins, least=2)
        edges = np.geomspace(1, exact[-1], bins)
        place = np.searchsorted(-edges, -exact)
        count = np.bincount(place, minlength=bins).astype(np.float64)
        h, count = edges[count > 0], count[count > 0]
    return Model(h, count, require_batch_size(function, batch_size), require_power(function, power))


def require_batch_size(function: str, value: Any, argument: str = "batch_size") -> float:
    """A number of at least 1, perhaps infinite."""
    batch_size = require_number(function, argument, value, "be at least 1")
    if batch_size < 1:
        refuse(function, argument, "be at least 1", value)
    return batch_size


def require_power(function: str, value: Any) -> float:
    """A number from 0 to 1."""
    power = require_number(function, "power", value, "be from 0 to 1")
    if power > 1:
        refuse(function, "power", "be from 0 to 1", value)
    return power


def require_target(function: str, value: Any, initial_loss: float) -> float:
    """A loss above 0 and below the one before the first step."""
    target = require_rate(function, "target", value)
    if not 0 < target < initial_loss:
        must = f"be above 0 and below the loss before the first step ({initial_loss:.6g})"
        refuse(function, "target", must, value)
    return target


def require_sequence(function: str, argument: str, values: Any) -> list[Any]:
    """The entries of a list, tuple or 1-d array that is not empty."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        refuse(function, argument, "be a sequence", type(values).__name__, TypeError)
    if len(values) == 0:
        refuse(function, argument, "have an entry", "none")
    return list(values)


def require_lr(function: str, argument: str, value: Any) -> float:
    """A finite number above 0."""
    lr = require_rate(function, argument, value)
    if lr == 0:
        refuse(function, argument, "be above 0", value)
    return lr
