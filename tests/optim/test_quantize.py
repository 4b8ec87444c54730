"""bfloat16 rounded stochastically, bfloat16 with a remainder, and 8-bit codes, to the bit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.reference import quantize as reference
from tests.support.compiled_formats import LOOPS, decode, elementwise, encode, library

EVERY_RANDOM = np.arange(2**16, dtype=np.uint16)
LARGEST_BFLOAT16 = np.uint32(0x7F7F0000).view(np.float32)
SCALES = [2.0**-149, 1e-42, 2.0**-126, 1e-30, 1e-8, 1.0, 1e10, 1e30, 2.0**126, 3e38]


@dataclass(frozen=True)
class Form:
    """One of the two kinds of codes."""

    signed: bool
    least: int  # code of zero
    top: int  # code of the largest magnitude
    dtype: type
    encode: Callable
    decode: Callable

    def every_code(self) -> np.ndarray:
        start = -self.top if self.signed else self.least
        return np.arange(start, self.top + 1).astype(self.dtype)


FORMS = {
    "signed": Form(True, 0, 127, np.int8, reference.encode_signed, reference.decode_signed),
    "unsigned": Form(False, 3, 255, np.uint8, reference.encode_unsigned, reference.decode_unsigned),
}


def of_bits(bits: object) -> np.ndarray:
    return np.asarray(bits, np.uint32).view(np.float32)


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 from the bits of bfloat16."""
    return of_bits(bits.astype(np.uint32) << 16)


def floats_of_all_kinds() -> np.ndarray:
    """Any bits; and for every bfloat16, what lies at, next to and halfway to it."""
    any_bits = np.random.default_rng(0).integers(0, 2**32, 10**6, np.uint32)
    high = np.arange(2**16, dtype=np.uint32)[:, None] << np.uint32(16)
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return of_bits(np.concatenate([any_bits, (high | low).ravel()]))


def moments(size: int, scale: float, seed: int = 0) -> np.ndarray:
    """Values from 1e-6 of `scale` up to it, of either sign, some zero."""
    generator = np.random.default_rng(seed)
    x = scale * 10.0 ** generator.uniform(-6, 0, size) * generator.choice([-1, 1], size)
    x[generator.random(size) < 0.05] = 0
    x[:: reference.BLOCK] = scale
    return x.astype(np.float32)


# bfloat16


@pytest.mark.parametrize("loops", LOOPS)
def test_stochastic_rounding_equals_the_reference(loops: str) -> None:
    x = floats_of_all_kinds()
    random = np.random.default_rng(1).integers(0, 2**16, x.size, np.uint16)
    (bits,) = elementwise(loops, "round_stochastically", [x, random], [np.uint16])
    expected = reference.round_to_bfloat16_stochastically(x, random)
    np.testing.assert_array_equal(bits, expected)


def test_what_bfloat16_represents_stays_whatever_the_random_bits() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    nan = np.isnan(widened(every))
    for random in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
        bits = reference.round_to_bfloat16_stochastically(
            widened(every), np.full_like(every, random)
        )
        np.testing.assert_array_equal(bits, np.where(nan, 0x7FFF, every))


@pytest.mark.parametrize(
    "x", [1.0001, -3.14159, 1e-40, -1e-44, 2.0**-149, 1.7e-38, 3e38, 0.0, -7e7]
)
def test_the_mean_of_stochastic_rounding_is_the_value_itself(x: float) -> None:
    values = np.full(2**16, x, np.float32)
    rounded = widened(reference.round_to_bfloat16_stochastically(values, EVERY_RANDOM))
    assert len(np.unique(rounded)) <= 2
    assert rounded.astype(np.float64).mean() == np.float64(values[0])


def test_no_finite_float_becomes_infinite() -> None:
    x = floats_of_all_kinds()
    for random in (0, 0xFFFF):
        rounded = widened(
            reference.round_to_bfloat16_stochastically(x, np.full(x.size, random, np.uint16))
        )
        np.testing.assert_array_equal(np.isfinite(rounded), np.isfinite(x))
        np.testing.assert_array_equal(np.isnan(rounded), np.isnan(x))
        beyond = np.isfinite(x) & (np.abs(x) > LARGEST_BFLOAT16)
        np.testing.assert_array_equal(np.abs(rounded[beyond]), LARGEST_BFLOAT16)


# bfloat16 and a remainder


@pytest.mark.parametrize("loops", LOOPS)
def test_halves_equal_the_reference(loops: str) -> None:
    x = floats_of_all_kinds()
    halves = elementwise(loops, "split_all", [x], [np.uint16, np.uint16])
    for actual, expected in zip(halves, reference.split(x), strict=True):
        np.testing.assert_array_equal(actual, expected)
    (back,) = elementwise(loops, "join_all", halves, [np.float32])
    np.testing.assert_array_equal(back.view(np.uint32), reference.join(*halves).view(np.uint32))
    expected = np.where(np.isnan(x), np.uint32(0x7FFF0000), x.view(np.uint32))
    np.testing.assert_array_equal(back.view(np.uint32), expected)


def test_no_float_at_all_is_lost() -> None:
    assert library("vector").count_lost_floats() == 0


def test_the_bfloat16_is_the_nearest_and_that_of_torch_except_for_ties() -> None:
    x = floats_of_all_kinds()
    nearest, _ = reference.split(x)
    of_torch = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    tie = (x.view(np.uint32) & 0xFFFF) == 0x8000
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(nearest[numbers & ~tie], of_torch[numbers & ~tie])
    ties = numbers & tie
    away = of_torch + (np.abs(widened(of_torch)) < np.abs(x))  # one more in magnitude
    np.testing.assert_array_equal(nearest[ties], away[ties])
    assert np.isnan(widened(nearest[~numbers])).all()


# 8-bit codes


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_codes_equal_the_reference(form: Form, loops: str, scale: float) -> None:
    for size in (0, 1, 127, 128, 129, 1000):
        x = moments(size, scale) if form.signed else np.abs(moments(size, scale))
        random = np.random.default_rng(2).integers(0, 2**16, size, np.uint16)
        codes, scales = form.encode(x, random)
        actual, actual_scales = encode(loops, x, random, form.dtype)
        np.testing.assert_array_equal(actual, codes)
        np.testing.assert_array_equal(actual_scales, scales)
        np.testing.assert_array_equal(decode(loops, codes, scales), form.decode(codes, scales))


def test_levels_are_those_of_small_floats() -> None:
    """Mantissas of 5 bits in the octaves at the top, one bit less after every 2 or 4 of them."""
    one = np.ones(1, np.float32)
    signed = reference.decode_signed(np.arange(13).astype(np.int8), one)
    np.testing.assert_allclose(signed * 4159, [0, 1, 3, 5, 7, 11, 15, 19, 23, 27, 31, 39, 47])
    two = np.ones(2, np.float32)
    unsigned = reference.decode_unsigned(FORMS["unsigned"].every_code(), two).astype(float)
    np.testing.assert_array_equal(unsigned[:5], 2.0 ** np.array([-24, -23, -22, -21, -20]))
    for bits in range(6):
        octaves = 2.0 ** (4 * (bits - 5) - np.arange(4))  # below these
        for above in octaves:
            within = unsigned[(unsigned >= above / 2) & (unsigned < above)]
            np.testing.assert_array_equal(within, above / 2 * (1 + np.arange(2**bits) / 2**bits))


@pytest.mark.parametrize("scale", [2.0**-110, 1e-8, 0.7, 1.0, 8.5e37])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_codes_survive_a_trip_and_their_ends_are_exact(form: Form, scale: float) -> None:
    # Each of two blocks needs the largest magnitude, or its scale would be another one.
    codes = np.sort(form.every_code())[::-1].copy()
    codes[128] = codes[0]
    scales = np.full(2, scale, np.float32)
    x = form.decode(codes, scales)
    assert (np.diff(x[:128]) < 0).all()
    assert (np.diff(x[129:]) < 0).all()
    assert x[0] == scales[0]
    assert x[-1] == (-scales[0] if form.signed else scales[0] * np.float32(2.0**-24))
    if form.signed:
        assert (x[codes == 0] == 0).all()
    for random in (0x0100, 0x8000, 0xFEFF):
        back, kept = form.encode(x, np.full(codes.size, random, np.uint16))
        np.testing.assert_array_equal(kept, scales)
        np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_largest_magnitude_leaves_the_codes(form: Form) -> None:
    """Every mantissa that there is, each the largest of a block, whatever the random bits."""
    mantissas = np.arange(2**23, dtype=np.uint32)
    for exponent, part in ((127, slice(None)), (17, slice(0, None, 7)), (252, slice(3, None, 7))):
        scales = of_bits(np.uint32(exponent << 23) | mantissas[part])
        top = np.float32(reference.SIGNED_LEVELS[-1]) if form.signed else np.float32(1)
        if form.signed:
            offset = reference.SIGNED_OFFSET
            levels = reference.SIGNED_LEVELS + offset
            position = reference._position(scales * (top / scales) + offset, levels)
        else:
            position = reference._position(scales * (top / scales), reference.UNSIGNED_LEVELS)
        whole = (form.top - form.least) << 16
        assert position.max() == whole  # so that 0xffff more does not carry into the next code
        assert position.min() >= whole - 2  # and but for a chance of 2^-15 it stays what it is


@pytest.mark.parametrize("y", [1e-6, 6.3e-5, 1e-4, 0.0123, 0.3, 0.51, 0.9999])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_mean_of_the_codes_is_the_value_itself(form: Form, y: float) -> None:
    """Over all random bits, for a value anywhere between two codes, near zero as well."""
    x = np.full((2**16 // 64, 128), y, np.float32)
    x[:, :64] = 1  # the largest of each block
    random = np.concatenate([EVERY_RANDOM.reshape(-1, 64)] * 2, axis=1)
    codes, scales = form.encode(x.ravel(), random.ravel())
    decoded = form.decode(codes, scales).reshape(x.shape)[:, 64:]
    assert len(np.unique(decoded)) == 2
    width = np.ptp(decoded)
    mean = decoded.mean(dtype=np.float64)
    np.testing.assert_allclose(mean, x[0, -1], rtol=1e-6, atol=width * 2**-15)


def test_negative_values_are_rounded_without_bias_as_well() -> None:
    x = moments(128 * 4096, 1.0).reshape(-1, 128)
    x[:] = x[0]
    random = np.random.default_rng(3).integers(0, 2**16, x.size, np.uint16)
    back = reference.decode_signed(*reference.encode_signed(x.ravel(), random)).reshape(x.shape)
    error = back.mean(axis=0, dtype=np.float64) - x[0]
    assert (np.abs(error) <= 5 * (np.ptp(back, axis=0) / 2 / 64 + 1e-9)).all()
    assert (x[0] < 0).any()


@pytest.mark.parametrize("largest", [2.0**-149, 1e-38, 1e-30, 1.0, 8e37])
def test_nothing_is_zero_in_a_second_moment_but_a_block_of_zeros(largest: float) -> None:
    x = np.full(256, 2.0**-149, np.float32)
    x[0], x[1], x[128:] = largest, 0, 0
    for random in (0, 0xFFFF):
        codes, scales = reference.encode_unsigned(x, np.full(256, random, np.uint16))
        back = reference.decode_unsigned(codes, scales)
        assert (back[:128] > 0).all()
        assert not back[128:].any()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_zeros_stay_zeros(form: Form) -> None:
    codes, scales = form.encode(np.zeros(300, np.float32), np.full(300, 0xFFFF, np.uint16))
    assert not codes.any()
    assert not form.decode(codes, scales).any()
    assert not form.decode(codes, np.zeros(3, np.float32)).any()  # state that was never written


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 3e38])
@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_block_with_a_nan_or_an_infinity_has_nothing_finite_left(
    form: Form, loops: str, bad: float
) -> None:
    """What is above 2^126 is about to become an infinity, and counts as one."""
    x = np.abs(moments(384, 1.0))
    x[200] = bad if form.signed else abs(bad)
    random = np.full(384, 0x8000, np.uint16)
    codes, scales = form.encode(x, random)
    actual, actual_scales = encode(loops, x, random, form.dtype)
    np.testing.assert_array_equal(actual, codes)
    np.testing.assert_array_equal(actual_scales, scales)
    back = decode(loops, actual, actual_scales)
    assert not np.isfinite(back[128:256]).any()
    assert np.isfinite(back[:128]).all()
    assert np.isfinite(back[256:]).all()


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_second_moment_follows_gradients_only_where_it_is_rounded_stochastically(
    stochastic: bool,
) -> None:
    """A step changes it by a tenth of a code, which to nearest is nothing."""
    size, beta = 128 * 64, 0.999
    generator = np.random.default_rng(3)
    largest = np.arange(size) % 128 == 0
    stored = np.where(largest, 1.0, 0.01).astype(np.float32)
    square = np.where(largest, 1.0, 0.02).astype(np.float32)
    for _ in range(1000):
        stored = np.float32(beta) * stored + np.float32(1 - beta) * square
        random = generator.integers(0, 2**16, size, np.uint16)
        random = random if stochastic else np.full(size, 0x7FFF, np.uint16)
        stored = reference.decode_unsigned(*reference.encode_unsigned(stored, random))
    share = ((stored[~largest] - 0.01) / (0.01 * (1 - beta**1000))).mean()  # of the true change
    assert share == pytest.approx(1, abs=0.02) if stochastic else abs(share) < 0.1


def test_a_block_is_a_divisor_of_tiles_and_chunks() -> None:
    assert 256 % reference.BLOCK == 0
    assert ctypes.c_int.in_dll(library("vector"), "block_size").value == reference.BLOCK
