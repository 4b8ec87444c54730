"""The Gram matrix of rows in the order of kernels/linalg/gram.h, which defines its bits."""

from __future__ import annotations

import numpy as np

BLOCK = 256  # rows


def gram(before: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`before` [d, d] float64, plus rowsᵀ rows; rows [n, d] hold values that float32 has."""
    result, wide = before.copy(), rows.astype(np.float64)
    for begin in range(0, len(wide), BLOCK):
        sum = np.zeros_like(result)
        for row in wide[begin : begin + BLOCK]:
            sum = sum + np.outer(row, row)
        result = result + sum
    return result


def gram_error(rows: int, columns: int) -> float:
    """How far the eigenvalues of a computed Gram matrix may be off, relative to the largest."""
    return 8 * 2.0**-53 * (rows**0.5 + columns)
