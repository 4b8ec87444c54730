"""The counter-based generator: published answers, the same bits by every path, and their spread."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import random as reference
from tests.support.compiled_formats import LOOPS, elementwise, philox, random_bits

# tests/kat_vectors of Random123 1.14.0, "philox4x32 10": counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip
SEED, ARRAY, STEP = 0x0123456789ABCDEF, reference.random_array(5, 2), 7


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter: str, key: str, result: str) -> None:
    key0, key1 = map(int, words(key))
    assert (reference.philox(words(counter), (key0, key1)) == words(result)).all()
    for loops in LOOPS:
        assert (philox(loops, words(counter)[None], (key0, key1)) == words(result)).all()


@pytest.mark.parametrize("how", ["random_by_tile", "random_by_group"])
@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("first", [0, 1, 2**32 - 5, 2**60 - 1])
def test_bits_are_those_of_the_reference(how: str, loops: str, first: int) -> None:
    for groups in (0, 1, 3, 63, 64, 65, 128, 200):
        bits = random_bits(loops, how, SEED, ARRAY, STEP, first, groups)
        expected = reference.random16(SEED, ARRAY, STEP, first * 8, groups * 8)
        np.testing.assert_array_equal(bits, expected)


def test_bits_depend_on_the_element_alone_and_not_on_where_a_tile_begins() -> None:
    whole = reference.random16(SEED, ARRAY, STEP, 0, 5000)
    for begin, size in ((0, 1), (7, 2), (8, 8), (13, 1000), (4999, 1)):
        part = reference.random16(SEED, ARRAY, STEP, begin, size)
        np.testing.assert_array_equal(part, whole[begin : begin + size])


def test_seed_array_step_and_element_all_count() -> None:
    """Streams that differ in one bit agree as often as independent ones: in 1 element of 65536."""
    size = 2**16
    base = reference.random16(SEED, ARRAY, STEP, 0, size)
    others = [
        reference.random16(SEED ^ 1, ARRAY, STEP, 0, size),
        reference.random16(SEED ^ 2**63, ARRAY, STEP, 0, size),
        reference.random16(SEED, ARRAY, STEP + 1, 0, size),
        reference.random16(SEED, reference.random_array(5, 3), STEP, 0, size),
        reference.random16(SEED, reference.random_array(6, 2), STEP, 0, size),
        reference.random16(SEED, ARRAY, STEP, size, size),
        reference.random16(SEED, ARRAY, STEP, 2**35, size),
    ]
    for other in others:
        assert (base == other).sum() < 10
        a, b = base.astype(float), other.astype(float)
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(size)


def test_arrays_of_a_step_have_numbers_of_their_own() -> None:
    numbers = {reference.random_array(tensor, slot) for tensor in range(1000) for slot in range(8)}
    assert len(numbers) == 8000
    assert reference.random_array(2**29 - 1, 7) == 2**32 - 1


def test_bits_are_uniform_and_independent_of_their_neighbours() -> None:
    bits = reference.random16(SEED, ARRAY, STEP, 0, 2**20)
    for byte in (bits & 0xFF, bits >> 8):
        counts = np.bincount(byte, minlength=256)
        chi_square = ((counts - 2**12) ** 2 / 2**12).sum()
        assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    ones = ((bits[:, None] >> np.arange(16)) & 1).mean(axis=0)
    np.testing.assert_allclose(ones, 0.5, atol=5 * 0.5 / 2**10)
    x = bits.astype(float) - bits.mean()
    for lag in (1, 2, 4, 8, 64, 1024):
        assert abs((x[lag:] * x[:-lag]).mean() / x.var()) < 5 / 2**10


@pytest.mark.parametrize("loops", LOOPS)
def test_exchanged_bytes_are_a_second_threshold_nearly_independent_of_the_first(loops: str) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    exchanged = reference.exchange_bytes(every)
    np.testing.assert_array_equal(
        elementwise(loops, "exchange_all", [every], [np.uint16])[0], exchanged
    )
    np.testing.assert_array_equal(np.sort(exchanged), every)
    for p in (0.002, 0.03, 0.2, 0.5, 0.77, 0.99):
        for q in (0.001, 0.05, 0.3, 0.5, 0.9):
            both = ((every < p * 2**16) & (exchanged < q * 2**16)).mean()
            assert abs(both - p * q) < 2**-7
    assert abs(np.corrcoef(every, exchanged)[0, 1]) < 2**-6
