"""QK-Clip by rows: kernels/optim/qk_clip.h."""

from __future__ import annotations

import numpy as np

from tests.reference.storage import compute_dtype, round_to


def factors(max_logits: np.ndarray, threshold: float) -> np.ndarray:
    """[heads] float64: what each head's rows are multiplied by. Only finite logits scale."""
    logits = max_logits.astype(np.float32).astype(np.float64)
    scaled = np.isfinite(logits) & (logits > threshold)
    gamma = np.divide(threshold, logits, out=np.ones_like(logits), where=scaled)
    return np.sqrt(gamma)


def qk_clip(weight: np.ndarray, dtype: str, max_logits: np.ndarray, threshold: float) -> np.ndarray:
    """The weight [heads * head_dim, ...], stored as `dtype`, in the type it is computed in."""
    of_head = factors(max_logits, threshold).astype(compute_dtype(dtype))
    of_row = np.repeat(of_head, len(weight) // max(len(max_logits), 1))
    return round_to(weight * of_row.reshape(-1, *[1] * (weight.ndim - 1)), dtype)
