"""Rounding to the storage types, as kernels/common/dtypes.h does it."""

from __future__ import annotations

import numpy as np


def compute_dtype(dtype: str) -> type[np.floating]:
    """The NumPy type that tensors of `dtype` ("float32", "bfloat16", ...) are computed in."""
    return np.float64 if dtype == "float64" else np.float32


def round_to(x: np.ndarray, dtype: str) -> np.ndarray:
    """`x` (float32 or float64) after a trip through `dtype`, in its own type again.

    To nearest, ties to even; beyond the largest finite value lies infinity. A NaN stays a NaN.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "float16":
            return x.astype(np.float32).astype(np.float16).astype(x.dtype)
        if dtype == "bfloat16":
            return _round_to_bfloat16(x.astype(np.float32)).astype(x.dtype)
        return x.astype(dtype).astype(x.dtype)


def _round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))
