"""Loss and gradient of rows of logits in the order of kernels/lm_head/softmax.h: the same bits."""

from __future__ import annotations

import math

import numpy as np

CHUNK = 2048  # classes
LANES = 128  # of a line of a chunk
CHUNK_LANES = 32

# Of kernels/lm_head/exp.h: the integers, the mantissa's bits, last term, bias, log 2 in two parts,
# least argument.
_EXP = {
    np.dtype(np.float32): (np.int32, 23, 7, 127, "0x1.62e4p-1", "0x1.7f7d1cp-20", -87.3),
    np.dtype(np.float64): (
        *(np.int64, 52, 13, 1023, "0x1.62e42fefa38p-1", "0x1.ef35793c7673p-45", -708.39),
    ),
}
_ROOT_HALF = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)


def exp(x: np.ndarray) -> np.ndarray:
    """exp(x) of float32 or float64 x <= 0 by kernels/lm_head/exp.h."""
    integer, mantissa, degree, bias, high, low, least = _EXP[x.dtype]
    of = x.dtype.type
    shift = of(1.5 * 2.0**mantissa + bias)
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = x * of(math.log2(math.e)) + shift
        n = shifted - shift
        r = x - n * of(float.fromhex(high)) - n * of(float.fromhex(low))
        series = of(1 / math.factorial(degree))
        for k in range(degree - 1, 1, -1):
            series = of(1 / math.factorial(k)) + r * series
        power = (shifted.view(integer) << mantissa).view(x.dtype)
        return np.where(x < of(least), of(0), (1 + (r + r * r * series)) * power)


def log1p(x: np.ndarray) -> np.ndarray:
    """log(1 + x) of float64 x >= 0 by kernels/lm_head/log1p.h."""
    total = 1 + x
    lost = (x - (total - 1)) / total
    above = total.view(np.int64) - _ROOT_HALF
    n = (above >> 52).astype(np.float64)
    f = ((above & ((1 << 52) - 1)) + _ROOT_HALF).view(np.float64) - 1
    s = f / (2 + f)
    z = s * s
    series = np.float64(1 / 23)
    for k in range(21, 1, -2):
        series = 1 / k + z * series
    high, low = (float.fromhex(part) for part in _EXP[np.dtype(np.float64)][4:6])
    return n * high + ((2 * s + 2 * s * z * series) + (n * low + lost))


def directions(logits: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions `[n, V]` of the logits' dtype; loss, miss, square and 1 `[n, 4]` float64.

    logits: `[n, V]` float32 or float64, finite. tokens: `[n]` integers.
    """
    of, count = logits.dtype.type, len(logits)
    rows = np.arange(count)
    others = logits.copy()
    others[rows, tokens] = -np.inf
    chunks = -(-logits.shape[1] // CHUNK)
    padded = np.full((count, chunks * CHUNK), -np.inf, logits.dtype)
    padded[:, : logits.shape[1]] = others
    z = padded.reshape(count, chunks, CHUNK)
    tops = z.max(2).clip(min=np.finfo(of).min)
    e = exp(z - tops[:, :, None])
    kept = np.where(e < of(2.0**-60 if of is np.float32 else 2.0**-500), of(0), e)
    sums, squares = (_sum_of_lines(x).astype(np.float64) for x in (e, kept * kept))

    top = tops.max(1).astype(np.float64)
    factors = exp(tops.astype(np.float64) - top[:, None])
    rest = _sum_of_chunks(factors * sums)
    square = _sum_of_chunks(factors * factors * squares)
    numbers = _describe(top, rest, square, logits[rows, tokens].astype(np.float64), of)

    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(rest[:, None] == 0, 0.0, factors / rest[:, None]).astype(of)
        least = np.finfo(of).tiny / weights
    written = np.where(e < least[:, :, None], of(0), e * weights[:, :, None])
    result = written.reshape(count, chunks * CHUNK)[:, : logits.shape[1]].copy()
    result[rows, tokens] = -1
    return result, numbers


def _describe(
    top: np.ndarray, rest: np.ndarray, squares: np.ndarray, logit: np.ndarray, of: type
) -> np.ndarray:
    ahead = logit - top
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = rest * exp(-np.abs(ahead))
        odds = np.where(odds < np.finfo(of).tiny, 0.0, odds)
        hit = exp(-np.abs(ahead))
        sure = ahead > 0
        loss = np.where(sure, log1p(odds), log1p(np.where(sure, 0.0, rest - 1 + hit)) - ahead)
        miss = np.where(sure, odds / (1 + odds), rest / (rest + hit))
        square = 1 + np.where(rest == 0, 0.0, squares / (rest * rest))
    return np.stack([loss, miss, square, np.ones_like(loss)], 1)


def _sum_of_lines(x: np.ndarray) -> np.ndarray:
    """[n, chunks, CHUNK] summed over the last: pairs of lines, these in order, lanes by halves."""
    lines = x.reshape(*x.shape[:2], CHUNK // LANES, LANES)
    lanes = np.zeros((*x.shape[:2], LANES), x.dtype)
    for line in range(0, CHUNK // LANES, 2):
        lanes = lanes + (lines[:, :, line] + lines[:, :, line + 1])
    return _fold(lanes)


def _sum_of_chunks(x: np.ndarray) -> np.ndarray:
    """[n, chunks] summed over the last: chunk c goes to lane c % 32, lanes fold by halves."""
    lanes = np.zeros((len(x), CHUNK_LANES))
    for begin in range(0, x.shape[1], CHUNK_LANES):
        some = x[:, begin : begin + CHUNK_LANES]
        lanes[:, : some.shape[1]] += some
    return _fold(lanes)


def _fold(lanes: np.ndarray) -> np.ndarray:
    """Halves the last dimension until one lane is left: lane l takes lane l + half."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]
