"""The number formats of kernels/optim/quantize.h and remainder.h, as bits and codes."""

from __future__ import annotations

import numpy as np

BLOCK = 128  # elements that share a scale
SMALLEST_SCALE = np.float32(2.0**-110)
_T = np.float32


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def round_to_bfloat16_stochastically(x: np.ndarray, random16: np.ndarray) -> np.ndarray:
    """Bits, uint16, of float32 `x` rounded to bfloat16 with 16 random bits for each element."""
    bits = _bits(x)
    magnitude, odd = bits & 0x7FFFFFFF, (bits >> 16) & 1
    stochastic = (bits + random16.astype(np.uint32)) >> 16
    nearest = (bits + np.uint32(0x7FFF) + odd) >> 16
    rounded = np.where(magnitude > 0x7F7F0000, nearest, stochastic)
    return np.where(magnitude > 0x7F800000, 0x7FFF, rounded).astype(np.uint16)


def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest bfloat16's bits and the remainder, both uint16; ties away from zero."""
    bits = _bits(x)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    nearest = np.where(nan, 0x7FFF, (bits + np.uint32(0x8000)) >> 16)
    return nearest.astype(np.uint16), np.where(nan, 0, bits & 0xFFFF).astype(np.uint16)


def join(nearest: np.ndarray, remainder: np.ndarray) -> np.ndarray:
    """The float32 that was split."""
    high = nearest.astype(np.uint32) - (remainder >> 15)
    return (high << 16 | remainder).view(np.float32)


def scales_of(x: np.ndarray) -> np.ndarray:
    """The scale of each block of 1-d `x`: [ceil(size / BLOCK)] float32."""
    padded = np.zeros(-(-x.size // BLOCK) * BLOCK, np.float32)
    padded[: x.size] = np.abs(x)
    largest = padded.reshape(-1, BLOCK).max(axis=1, initial=0)  # NaN wins
    return np.where(largest < SMALLEST_SCALE, SMALLEST_SCALE, largest)


def _of_elements(scales: np.ndarray, size: int) -> np.ndarray:
    return np.repeat(scales, BLOCK)[:size]


def decode_signed(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 from int8 codes [size] and their blocks' scales."""
    c = codes.astype(np.float32)
    with np.errstate(all="ignore"):
        return c * np.abs(c) * (_T(1) / _T(16129)) * _of_elements(scales, codes.size)


def decode_unsigned(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 from uint8 codes [size] and their blocks' scales."""
    c = codes.astype(np.float32)
    root = c * c * (_T(1) / _T(65025))
    with np.errstate(all="ignore"):
        return root * root * _of_elements(scales, codes.size)


def _uniform(random16: np.ndarray) -> np.ndarray:
    return (random16.astype(np.float32) + _T(0.5)) * _T(2.0**-16)


def encode_signed(x: np.ndarray, random16: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes and scales of 1-d float32 `x`, rounded with 16 random bits an element."""
    scales = scales_of(x)
    with np.errstate(all="ignore"):
        root = np.sqrt(np.abs(x) * _of_elements(_T(1) / scales, x.size)) * _T(127)
    root = np.where(root < 127, root, _T(127))
    lower = np.trunc(root)
    above, width = (root - lower) * (root + lower), 2 * lower + 1
    code = lower + (above > _uniform(random16) * width)
    return np.where(x < 0, -code, code).astype(np.int8), scales


def encode_unsigned(x: np.ndarray, random16: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 codes and scales of 1-d float32 `x` >= 0, rounded with 16 random bits an element."""
    scales = scales_of(x)
    with np.errstate(all="ignore"):
        root = np.sqrt(np.sqrt(x * _of_elements(_T(1) / scales, x.size))) * _T(255)
    root = np.where(root < 255, root, _T(255))
    lower = np.trunc(root)
    upper = lower + 1
    above = (root - lower) * (root + lower) * (root * root + lower * lower)
    width = (2 * lower + 1) * (upper * upper + lower * lower)
    code = lower + (above > _uniform(random16) * width)
    return np.maximum(code, x > 0).astype(np.uint8), scales
