"""NorMuon's normalization of rows, https://arxiv.org/abs/2510.05491, in float64."""

from __future__ import annotations

import numpy as np


def normalize_rows(
    orthogonal: np.ndarray, moments: np.ndarray, beta2: float
) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [m, n] with rows divided by the roots of `moments` [m], and these after the step.

    The Frobenius norm of the matrix stays. Nothing is written to.
    """
    moments = beta2 * moments + (1 - beta2) * np.square(orthogonal).mean(axis=1)
    divided = orthogonal / (np.sqrt(moments) + 1e-10)[:, np.newaxis]
    before, after = np.linalg.norm(orthogonal), np.linalg.norm(divided)
    return divided * (before / after if after > 0 else 0.0), moments
