"""Sums of rows by id in the order of kernels/lm_head/segment_sum.h, which defines their bits."""

from __future__ import annotations

import numpy as np

PIECE = 64  # sorted positions; no sum of a piece spans two of them


def segment_sum(
    sums: np.ndarray, rows: np.ndarray, order: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """`sums` [ids, width] float64, plus row order[p] of `rows` for each p in row ids[p]."""
    result = sums.copy()
    for begin in range(0, len(ids), PIECE):
        of_piece = ids[begin : begin + PIECE]
        for id in np.unique(of_piece):
            sum = np.zeros(sums.shape[1])
            for p in begin + np.flatnonzero(of_piece == id):
                sum = sum + rows[order[p]].astype(np.float64)
            result[id] = result[id] + sum
    return result
