"""How far to go along a direction so that the loss falls enough, and never rises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SUFFICIENT = 1e-4  # of the decrease that the slope promises: Armijo 1966, as usually chosen
ROUNDING = 4  # roundoffs of the loss hide a decrease


def backtrack(
    loss_at: Callable[[Tensor], Tensor], weight: Tensor, step: Tensor, loss: Tensor, slope: float
) -> tuple[Tensor, Tensor]:
    """The first of weight + step, weight + step / 2, ... whose loss is low enough, and that loss.

    `slope`, negative, is the inner product of gradient and step; `loss` is that of `weight`, which
    comes back where no length will do. Each attempt reads a loss on the host.
    """
    length, invisible = 1.0, ROUNDING * torch.finfo(weight.dtype).eps * float(loss)
    while True:
        promised = -length * slope
        wanted = SUFFICIENT * promised if promised > invisible else 0.0
        attempt = weight.add(step, alpha=length)
        found = loss_at(attempt)
        if bool(found <= loss - wanted):  # not for NaN
            return attempt, found
        if promised <= invisible:
            return weight, loss
        length /= 2
