"""The number formats of kernels/optim/{quantize,remainder,correction}.h, as bits and codes."""

from __future__ import annotations

import numpy as np

BLOCK = 128  # elements that share a scale
SMALLEST_SCALE = np.float32(2.0**-110)
LARGEST_SCALE = np.float32(2.0**126)
LARGEST_BFLOAT16 = np.float32(float.fromhex("0x1.fep127"))
_T = np.float32


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def round_to_bfloat16_stochastically(x: np.ndarray, random16: np.ndarray) -> np.ndarray:
    """Bits, uint16, of float32 `x` rounded to bfloat16 with 16 random bits for each element."""
    with np.errstate(invalid="ignore"):
        added = np.where(np.abs(x) <= LARGEST_BFLOAT16, random16, 0).astype(np.uint32)
    return np.where(np.isnan(x), 0x7FFF, (_bits(x) + added) >> 16).astype(np.uint16)


def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest bfloat16's bits and the remainder, both uint16; ties away from zero."""
    bits = _bits(x)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    nearest = np.where(nan, 0x7FFF, (bits + np.uint32(0x8000)) >> 16)
    return nearest.astype(np.uint16), np.where(nan, 0, bits & 0xFFFF).astype(np.uint16)


def join(nearest: np.ndarray, remainder: np.ndarray) -> np.ndarray:
    """The float32 that was split; the bfloat16 itself where that is no number."""
    high = nearest.astype(np.uint32) - (remainder >> 15)
    joined = (high << 16 | remainder).view(np.float32)
    return np.where(np.isnan(joined), (nearest.astype(np.uint32) << 16).view(np.float32), joined)


def round_to_24_bits_stochastically(x: np.ndarray, random8: np.ndarray) -> np.ndarray:
    """float32 `x` rounded to 24 bits with 8 random bits for each element."""
    bits = _bits(x)
    beyond = (bits & 0x7FFFFFFF) > 0x7F7FFF00
    rounded = (bits + np.where(beyond, 0x80, random8).astype(np.uint32)) & np.uint32(0xFFFFFF00)
    return np.where(np.isnan(x), x, rounded.view(np.float32))


def split_in_24(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest bfloat16's bits, uint16, and the correction, uint8, of a float of 24 bits."""
    nearest, remainder = split(x)
    return nearest, (remainder >> 8).astype(np.uint8)


def join_in_24(nearest: np.ndarray, correction: np.ndarray) -> np.ndarray:
    """The float of 24 bits that was split."""
    return join(nearest, correction.astype(np.uint16) << 8)


def tapered(octaves: int, first: int, last: int) -> np.ndarray:
    """float64 levels number `first` to `last`, which is 1 at the largest power of two among them.

    Each doubling of the number takes `octaves`, and between powers of two they are linear.
    """
    number = np.arange(first, last + 1, dtype=np.float64)
    doubled = np.floor(np.log2(number))
    octave = (number / 2**doubled - 1) * octaves
    whole = np.floor(octave)
    level = np.exp2(octaves * doubled + whole) * (1 + octave - whole)
    return level / 2.0 ** (octaves * doubled[-1])


SIGNED_OFFSET = np.float32(2.0**-12)
SIGNED_LEVELS = tapered(2, 2, 129) - SIGNED_OFFSET  # of the codes 0 to 127, times that of 127
UNSIGNED_LEVELS = tapered(4, 4, 256)  # of the codes 3 to 255
LEAST_CODE = 3


def has_codes(largest: np.ndarray) -> np.ndarray:
    """Whether a block with this largest magnitude, or this scale, has codes other than 0."""
    with np.errstate(invalid="ignore"):
        return (largest > 0) & (largest <= LARGEST_SCALE)


def scales_of(x: np.ndarray) -> np.ndarray:
    """The scale of each block of 1-d `x`: [ceil(size / BLOCK)] float32."""
    padded = np.zeros(-(-x.size // BLOCK) * BLOCK, np.float32)
    padded[: x.size] = np.abs(x)
    largest = padded.reshape(-1, BLOCK).max(axis=1, initial=0)  # NaN wins
    with np.errstate(all="ignore"):
        return np.where(has_codes(largest), np.maximum(largest, SMALLEST_SCALE), largest * _T(4))


def _of_elements(scales: np.ndarray, size: int) -> np.ndarray:
    return np.repeat(scales, BLOCK)[:size]


def decode_signed(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 from int8 codes [size] and their blocks' scales."""
    code = codes.astype(int)
    top = _T(SIGNED_LEVELS[-1])
    level = (np.sign(code) * SIGNED_LEVELS[np.abs(code)]).astype(np.float32) * (_T(1) / top)
    with np.errstate(all="ignore"):
        return level * _of_elements(scales, codes.size)


def decode_unsigned(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 from uint8 codes [size] and their blocks' scales; 1 and 2 are no codes."""
    level = UNSIGNED_LEVELS[np.maximum(codes, LEAST_CODE) - LEAST_CODE].astype(np.float32)
    with np.errstate(all="ignore"):
        return np.where(codes == 0, _T(2.0**-32), level) * _of_elements(scales, codes.size)


def _position(y: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Where float32 `y` is among `levels`, linear between them; in units of 2^-16, rounded down."""
    y = y.astype(np.float64)
    lower = np.clip(np.searchsorted(levels, y, side="right") - 1, 0, levels.size - 2)
    share = (y - levels[lower]) / (levels[lower + 1] - levels[lower])
    return np.floor(np.minimum(lower + share, levels.size - 1) * 2**16).astype(np.int64)


def _scaled(x: np.ndarray, scales: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes times top / scale, 0 where a block has no codes; and where it has some."""
    coded = _of_elements(has_codes(scales), x.size)
    with np.errstate(all="ignore"):
        return np.where(coded, np.abs(x) * _of_elements(_T(top) / scales, x.size), _T(0)), coded


def encode_signed(x: np.ndarray, random16: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes and scales of 1-d float32 `x`, rounded with 16 random bits an element."""
    scales = scales_of(x)
    y, coded = _scaled(x, scales, SIGNED_LEVELS[-1])
    position = _position(y + SIGNED_OFFSET, SIGNED_LEVELS + SIGNED_OFFSET)
    code = (np.where(np.signbit(x), -position, position) + random16) >> 16
    return np.where(coded, code, 0).astype(np.int8), scales


def encode_unsigned(x: np.ndarray, random16: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 codes and scales of 1-d float32 `x` >= 0, rounded with 16 random bits an element."""
    scales = scales_of(x)
    y, coded = _scaled(x, scales, 1.0)
    position = _position(np.maximum(y, _T(UNSIGNED_LEVELS[0])), UNSIGNED_LEVELS)
    code = LEAST_CODE + ((position + random16) >> 16)
    return np.where(coded, code, 0).astype(np.uint8), scales
