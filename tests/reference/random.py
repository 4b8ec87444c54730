"""The random bits of kernels/optim/random.h: Philox4x32-10 of (seed, step, array, element)."""

from __future__ import annotations

import numpy as np

GROUP = 8  # elements that share a call of the generator
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """The generator: `counter` [..., 4] uint32 to random uint32 of that shape.

    Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    a, b, c, d = np.moveaxis(counter.astype(np.uint64), -1, 0)
    for i in range(10):
        key0 = np.uint64((key[0] + i * 0x9E3779B9) & 0xFFFFFFFF)
        key1 = np.uint64((key[1] + i * 0xBB67AE85) & 0xFFFFFFFF)
        product_a, product_c = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (product_c >> _HALF) ^ b ^ key0, product_c & _LOW
        c, d = (product_a >> _HALF) ^ d ^ key1, product_a & _LOW
    return np.stack([a, b, c, d], axis=-1).astype(np.uint32)


def random_array(tensor: int, slot: int) -> int:
    """An array's number; slot 0 for the parameter, 1 + k for its states k and k + 1, k even."""
    return tensor << 3 | slot


def random16(seed: int, array: int, step: int, begin: int, size: int) -> np.ndarray:
    """The bits of elements [begin, begin + size) of an array at update `step`: [size] uint16."""
    first, last = begin // GROUP, -(-(begin + size) // GROUP)
    groups = np.arange(first, last, dtype=np.uint64)
    counter = np.empty((groups.size, 4), np.uint32)
    counter[:, 0], counter[:, 1] = groups & _LOW, groups >> _HALF
    counter[:, 2], counter[:, 3] = array, step
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    halves = np.stack([words & 0xFFFF, words >> 16], axis=-1).astype(np.uint16)
    return halves.reshape(-1)[begin - first * GROUP :][:size]


def exchange_bytes(bits: np.ndarray) -> np.ndarray:
    """The bits that a second array is rounded by: `bits` (uint16) with their bytes exchanged."""
    return bits.byteswap()
