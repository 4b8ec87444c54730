"""What every method of the Newton family returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class NewtonResult(NamedTuple):
    """The last layer after some steps, and how the loss went."""

    weight: Tensor  # [V, d], a tensor of its own: float64 where the given one is, else float32
    losses: Tensor  # [steps + 1] float64: the mean cross-entropy in nats before, after each step
