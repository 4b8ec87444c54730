"""The global norm in the order of kernels/optim/norm.h, which defines its bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

CHUNK = 32768  # elements; no chunk spans two tensors
LANES = 256
STRIPS = 8
RESCUE = np.float32(2.0**-96)  # brings every finite float32 into the range where squares are finite

Combine = Callable[[np.ndarray, np.ndarray], np.ndarray]


def total_norm(
    tensors: Sequence[np.ndarray], norm_type: float = 2.0, grad_scale: float = 1.0
) -> np.float64:
    """The norm (2, 1 or inf) of all elements of 1-d float32 or float64 arrays, over `grad_scale`.

    An empty array takes part as one chunk of nothing. The published norm is this as float32.
    """
    with np.errstate(all="ignore"):
        partials = [_partial(chunk, norm_type) for x in tensors for chunk in _chunks(x)]
        combine: Combine = np.maximum if norm_type == math.inf else np.add
        lanes = np.zeros(LANES)
        for begin in range(0, len(partials), LANES):
            some = np.array(partials[begin : begin + LANES])
            lanes[: some.size] = combine(lanes[: some.size], some)
        folded = _fold(lanes, combine)
        return (np.sqrt(folded) if norm_type == 2 else folded) / np.float64(grad_scale)


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    return [x[begin : begin + CHUNK] for begin in range(0, max(x.size, 1), CHUNK)]


def _partial(chunk: np.ndarray, norm_type: float) -> np.float64:
    """The chunk's sum of squares, sum of magnitudes or largest magnitude."""
    partial = np.float64(_sum_chunk(chunk, norm_type))
    if np.isfinite(partial) or norm_type == math.inf or chunk.dtype == np.float64:
        return partial
    rescued = np.float64(_sum_chunk(chunk * RESCUE, norm_type))
    return rescued * 2.0 ** (192 if norm_type == 2 else 96)


def _sum_chunk(chunk: np.ndarray, norm_type: float) -> np.floating:
    combine: Combine = np.maximum if norm_type == math.inf else np.add
    rows = math.ceil(math.ceil(chunk.size / LANES) / STRIPS)  # of a strip
    # Zeros past the end change nothing: no sum or maximum here is ever below +0.
    padded = np.zeros(STRIPS * rows * LANES, chunk.dtype)
    padded[: chunk.size] = chunk
    padded = padded * padded if norm_type == 2 else np.abs(padded)
    lanes = np.zeros((STRIPS, LANES), chunk.dtype)
    for row in range(rows):
        lanes = combine(lanes, padded.reshape(STRIPS, rows, LANES)[:, row])
    total = chunk.dtype.type(0)
    for strip in _fold(lanes, combine):
        total = combine(total, strip)
    return total


def _fold(lanes: np.ndarray, combine: Combine) -> np.ndarray:
    """Halves the last dimension until one lane is left: lane l takes lane l + half."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = combine(lanes[..., :half], lanes[..., half:])
    return lanes[..., 0]
