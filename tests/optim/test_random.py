"""The counter-based generator: its bits by every path, and their statistics."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.reference import random as reference
from tests.support.compiled_formats import LOOPS, elementwise, random_bits

SEED, ARRAY, STEP = 0x0123456789ABCDEF, reference.random_array(5, 2), 7


def test_the_hash_of_the_key_gives_published_answers() -> None:
    """SplitMix64 from seed 1234567: its states are multiples of the constant that mix64 adds."""
    states = [1234567 + i * 0x9E3779B97F4A7C15 for i in range(3)]
    assert [reference.mix64(x % 2**64) for x in states] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip


def test_the_bits_are_those_that_checkpoints_continue_with() -> None:
    """Never change these numbers: a run that continues would be rounded by others."""
    assert reference.random16(0, 0, 0, 0, 8).tolist() == [
        33431,
        23870,
        17236,
        54740,
        53415,
        7964,
        25871,
        2946,
    ]
    assert reference.random16(SEED, ARRAY, STEP, 2**33 - 4, 8).tolist() == [
        59487,
        27099,
        30639,
        7645,
        11865,
        13932,
        41464,
        20017,
    ]


@pytest.mark.parametrize("how", ["random_by_tile", "random_by_group"])
@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("begin", [0, 128, 2**33 - 1024, 2**33, 2**60 - 1024, 1, 12345, 2**33 + 7])
def test_bits_are_those_of_the_reference(how: str, loops: str, begin: int) -> None:
    for size in (0, 1, 2, 31, 128, 1000, 1024):
        bits = random_bits(loops, how, SEED, ARRAY, STEP, begin, size)
        expected = reference.random16(SEED, ARRAY, STEP, begin, size)
        np.testing.assert_array_equal(bits, expected)


def test_bits_depend_on_the_element_alone_and_not_on_where_a_tile_begins() -> None:
    whole = reference.random16(SEED, ARRAY, STEP, 0, 5000)
    for begin, size in ((0, 1), (7, 2), (8, 8), (13, 1000), (4999, 1)):
        part = reference.random16(SEED, ARRAY, STEP, begin, size)
        np.testing.assert_array_equal(part, whole[begin : begin + size])


def test_arrays_of_a_step_have_numbers_of_their_own() -> None:
    numbers = {reference.random_array(tensor, slot) for tensor in range(1000) for slot in range(8)}
    assert len(numbers) == 8000
    assert reference.random_array(2**29 - 1, 7) == 2**32 - 1


# --- statistics: each bound is 5 standard deviations of independent uniform bits ------------------


@functools.cache
def draws() -> np.ndarray:
    """2^24 neighbouring ones."""
    return reference.random16(SEED, ARRAY, STEP, 0, 2**24)


def deviation(values: np.ndarray) -> float:
    """Chi-square of uint16 `values` over 65536 cells, in standard deviations from its mean."""
    counts, freedom = np.bincount(values, minlength=2**16), 2**16 - 1
    chi_square = ((counts - values.size / 2**16) ** 2).sum() / (values.size / 2**16)
    return abs(chi_square - freedom) / np.sqrt(2 * freedom)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of uint16 values, in standard deviations."""
    x, y = (bits.astype(np.float32) - 32767.5 for bits in (a, b))
    variance = (2.0**32 - 1) / 12
    return abs(np.dot(x, y)) / variance / np.sqrt(a.size)


def high_bytes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper bytes of two arrays side by side: uniform where both are, and independent."""
    return (a & 0xFF00) | (b >> 8)


def test_2_to_the_24_draws_are_uniform() -> None:
    assert deviation(draws()) < 5
    assert deviation(draws()[0::2]) < 5  # the lower half of every word
    assert deviation(draws()[1::2]) < 5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 16, 128, 1024, 32768, 2**20])
def test_draws_are_independent_of_those_at_a_distance(lag: int) -> None:
    a, b = draws()[:-lag], draws()[lag:]
    assert correlation(a, b) < 5
    once = slice(0, None, 2) if lag % 2 else slice(None)  # no draw is in two pairs of neighbours
    assert deviation(high_bytes(a[once], b[once])) < 5


def test_each_bit_is_fair_and_independent_of_the_others() -> None:
    bits = ((draws()[: 2**20, None] >> np.arange(16, dtype=np.uint16)) & 1).astype(np.float32)
    bits = (bits - 0.5).reshape(-1, 32)  # of a word
    products = bits.T @ bits / (0.25 * np.sqrt(len(bits)))
    np.fill_diagonal(products, 0)
    assert np.abs(bits.sum(axis=0)).max() < 5 * 0.5 * np.sqrt(len(bits))
    assert np.abs(products).max() < 5.5  # of 496 pairs


def test_seed_array_step_and_element_all_count() -> None:
    """Streams that differ in one bit of what makes them are independent."""
    size = 2**22
    base = draws()[:size]
    for other in (
        reference.random16(SEED ^ 1, ARRAY, STEP, 0, size),
        reference.random16(SEED ^ 2**63, ARRAY, STEP, 0, size),
        reference.random16(SEED, ARRAY, STEP + 1, 0, size),
        reference.random16(SEED, reference.random_array(5, 3), STEP, 0, size),
        reference.random16(SEED, reference.random_array(6, 2), STEP, 0, size),
        reference.random16(SEED, ARRAY, STEP, 2**33, size),
    ):
        assert correlation(base, other) < 5
        assert deviation(high_bytes(base, other)) < 5
        assert abs((base == other).sum() - size / 2**16) < 5 * np.sqrt(size / 2**16)


def test_an_element_draws_independent_bits_from_step_to_step() -> None:
    steps = np.stack([reference.random16(SEED, ARRAY, step, 4096, 256) for step in range(2**14)])
    assert deviation(steps.ravel()) < 5
    for lag in (1, 2, 10):
        assert correlation(steps[lag:].ravel(), steps[:-lag].ravel()) < 5
        assert deviation(high_bytes(steps[lag::2].ravel(), steps[:-lag:2].ravel())) < 5


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
