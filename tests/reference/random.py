"""The random bits of kernels/optim/random.h: a hash of (seed, step, array, element)."""

from __future__ import annotations

import numpy as np

GROUP = 2  # elements that share a word


def mix64(x: int) -> int:
    """The finalizer of SplitMix64: Steele, Lea and Flood 2014."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def random_array(tensor: int, slot: int) -> int:
    """An array's number; slot 0 for the parameter, 1 + k for its states k and k + 1, k even."""
    return tensor << 3 | slot


def random_words(key: int, groups: np.ndarray) -> np.ndarray:
    """uint32 words of the groups of these numbers (uint32), by a key of 64 bits."""
    start, twist = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    x = groups * np.uint32(0x9E3779B9) + start
    x = (x ^ x >> 16) * np.uint32(0x7FEB352D)
    x = (x ^ x >> 15 ^ twist) * np.uint32(0x846CA68B)
    return x ^ x >> 16


def random16(seed: int, array: int, step: int, begin: int, size: int) -> np.ndarray:
    """The bits of elements [begin, begin + size) of an array at update `step`: [size] uint16."""
    first, end = begin // GROUP, -(-(begin + size) // GROUP)
    stream, words, at = mix64(mix64(seed) ^ (array << 32 | step)), [], first
    while at < end:  # a key for each 2^32 groups
        window, stop = at >> 32, min(end, (at >> 32) + 1 << 32)
        groups = np.arange(at - (window << 32), stop - (window << 32), dtype=np.uint64)
        words.append(random_words(mix64((stream + window) % 2**64), groups.astype(np.uint32)))
        at = stop
    all_words = np.concatenate([np.empty(0, np.uint32), *words])
    halves = np.stack([all_words & 0xFFFF, all_words >> 16], axis=-1).astype(np.uint16)
    return halves.reshape(-1)[begin - first * GROUP :][:size]


def exchange_bytes(bits: np.ndarray) -> np.ndarray:
    """The bits that a second array is rounded by: `bits` (uint16) with their bytes exchanged."""
    return bits.byteswap()
