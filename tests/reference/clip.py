"""By how much gradients are multiplied, or that a step is skipped: kernels/optim/clip.h."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Decision(NamedTuple):
    """What a step does: `skip`, or multiply every gradient by `multiplier`."""

    multiplier: np.float64
    skip: bool


def clip_coefficient(norm: float, max_norm: float) -> np.float64:
    """torch.nn.utils.clip_grad_norm_'s min(1, max_norm / (norm + 1e-6)), in float64."""
    with np.errstate(invalid="ignore"):
        coefficient = np.float64(max_norm) / (np.float64(norm) + 1e-6)
    return np.float64(1) if coefficient > 1 else coefficient


def decide(
    norm: float | None,
    max_norm: float | None = None,
    grad_scale: float | None = None,
    found_inf: float | None = None,
    skip_nonfinite: bool = False,
) -> Decision:
    """`norm`: of the unscaled gradients, float64; None where neither clip nor skip asked for it."""
    multiplier, skip = np.float64(1), bool(found_inf)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if norm is not None:
            skip |= skip_nonfinite and not np.isfinite(np.float32(norm))
            if max_norm is not None:
                multiplier = clip_coefficient(norm, max_norm)
        if grad_scale is not None:
            multiplier /= np.float64(np.float32(grad_scale))
    return Decision(multiplier, skip)
