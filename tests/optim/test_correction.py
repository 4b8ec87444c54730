"""A bfloat16 parameter with an 8-bit correction: its numbers, all of them, and its updates."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fusedstep
from tests.reference import quantize as reference
from tests.support.compiled_formats import LOOPS, elementwise
from tests.support.optimizers import assert_same_run
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

EVERY_RANDOM = np.arange(2**8, dtype=np.uint8)
LARGEST = np.uint32(0x7F7FFF00)  # the largest finite number of 24 bits
NAN = np.uint32(0x7FFF0000)
every_loop = pytest.mark.parametrize("loops", LOOPS)


def of_bits(bits: Any) -> np.ndarray:
    return np.asarray(bits, np.uint32).view(np.float32)


def bits_of(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


def every_number() -> Iterator[np.ndarray]:
    """All 2^24 patterns, an eighth at a time."""
    for first in range(0, 2**24, 2**21):
        yield of_bits(np.arange(first, first + 2**21, dtype=np.uint32) << 8)


def random8(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**8, size, np.uint8)


def corrected(loops: str, x: np.ndarray, random: np.ndarray) -> list[np.ndarray]:
    """By the kernels' code: the rounded float, the bfloat16's bits, the correction."""
    return elementwise(loops, "correct_all", [x, random], [np.float32, np.uint16, np.uint8])


def joined(loops: str, nearest: np.ndarray, correction: np.ndarray) -> np.ndarray:
    (x,) = elementwise(loops, "join_corrections", [nearest, correction], [np.float32])
    return x


def followed(x: np.ndarray, random: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same by the reference."""
    rounded = reference.round_to_24_bits_stochastically(x, random)
    return rounded, *reference.split_in_24(rounded)


# --- the format -----------------------------------------------------------------------------------


@every_loop
def test_every_number_of_24_bits_is_kept_whatever_the_random_bits(loops: str) -> None:
    """Zeros, subnormals, ties of the bfloat16, the largest and infinities; a NaN stays one."""
    for x in every_number():
        rounded, nearest, correction = corrected(loops, x, random8(x.size))
        expected = np.where(np.isnan(x), NAN, bits_of(x))
        np.testing.assert_array_equal(bits_of(joined(loops, nearest, correction)), expected)
        number = ~np.isnan(x)
        np.testing.assert_array_equal(bits_of(rounded)[number], expected[number])
        for ends in (0x00, 0xFF):
            kept = reference.round_to_24_bits_stochastically(x, np.full(x.size, ends, np.uint8))
            np.testing.assert_array_equal(bits_of(kept)[number], expected[number])


def test_the_bfloat16_is_the_nearest_and_that_of_torch_except_for_ties() -> None:
    for x in every_number():
        nearest, correction = reference.split_in_24(x)
        tie = correction == 0x80
        assert (tie == ((bits_of(x) & 0xFFFF) == 0x8000))[~np.isnan(x)].all()
        of_torch = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
        number = ~np.isnan(x)
        np.testing.assert_array_equal(nearest[number & ~tie], of_torch[number & ~tie])
        away = (bits_of(x)[number & tie] >> 16) + 1
        np.testing.assert_array_equal(nearest[number & tie], away)


@every_loop
def test_every_bfloat16_that_may_be_written_counts_with_every_correction(loops: str) -> None:
    """It stays the nearest one to the value; a zero, an infinity and a NaN never turn."""
    for first in range(0, 2**16, 2**13):
        written = np.repeat(np.arange(first, first + 2**13, dtype=np.uint16), 2**8)
        x = joined(loops, written, np.tile(EVERY_RANDOM, 2**13))
        value = of_bits(written.astype(np.uint32) << 16)
        np.testing.assert_array_equal(np.isnan(x), np.isnan(value))
        number = ~np.isnan(x)
        np.testing.assert_array_equal(reference.split_in_24(x)[0][number], written[number])
        correction = np.tile(EVERY_RANDOM, 2**13)
        expected = reference.join_in_24(written, correction)
        np.testing.assert_array_equal(bits_of(x)[number], bits_of(expected)[number])


@every_loop
def test_rounding_equals_the_reference(loops: str) -> None:
    """Of any bits, and of what lies at, next to and halfway between numbers of 24 bits."""
    any_bits = np.random.default_rng(0).integers(0, 2**32, 10**6, np.uint32)
    high = np.arange(0, 2**32, 2**16 + 2**8, dtype=np.uint64).astype(np.uint32)[:, None]
    low = np.array([0, 1, 0x7F, 0x80, 0x81, 0xFF], np.uint32)
    edges = np.arange(LARGEST - 0x300, 0x7F800300, dtype=np.uint32)
    bits = [any_bits, ((high & 0xFFFFFF00) | low).ravel(), edges, edges | 0x80000000]
    x = of_bits(np.concatenate(bits))
    random = random8(x.size, seed=1)
    for actual, expected in zip(corrected(loops, x, random), followed(x, random), strict=True):
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(actual[number], expected[number])
        assert np.isnan(actual[~number]).all()


@pytest.mark.parametrize(
    "x", [1.00001, -3.1415927, 1e-40, -1e-44, 2.0**-149, 1.7e-38, 3.4e38, -7e7]
)
def test_the_mean_is_the_value_itself(x: float) -> None:
    values = np.full(2**8, x, np.float32)
    rounded = reference.round_to_24_bits_stochastically(values, EVERY_RANDOM)
    assert len(np.unique(rounded)) <= 2
    assert rounded.astype(np.float64).mean() == np.float64(values[0])


def test_what_lies_beyond_the_largest_number_is_rounded_to_nearest() -> None:
    beyond = np.arange(LARGEST + 1, 0x7F800001, dtype=np.uint32)
    expected = np.where(beyond < LARGEST + 0x80, LARGEST, 0x7F800000)
    for sign in (0, 0x80000000):
        for random in (0x00, 0xFF):
            rounded = reference.round_to_24_bits_stochastically(
                of_bits(beyond | np.uint32(sign)), np.full(beyond.size, random, np.uint8)
            )
            np.testing.assert_array_equal(bits_of(rounded), expected | np.uint32(sign))


# --- updates --------------------------------------------------------------------------------------


def values_of(optimizer: fusedstep.SGD | fusedstep.AdamW, param: Tensor) -> np.ndarray:
    """The parameter's numbers of 24 bits."""
    bits = param.detach().view(torch.int16).numpy().view(np.uint16)
    return reference.join_in_24(bits, optimizer.state[param]["correction"].numpy())


@pytest.mark.parametrize("share", [1 / 64, 0.3, 0.49])
def test_updates_below_half_of_the_last_bit_move_the_mean(share: float) -> None:
    """To nearest, each of them would be lost; the mean is right within 5 standard errors."""
    unit, steps, size = 2.0**-16, 200, 2**16  # below one, where a step downwards leads
    lost = np.float32(1 - share * unit)
    assert reference.round_to_24_bits_stochastically(lost.reshape(1), np.array([0x80])) == 1
    param = torch.ones(size, dtype=torch.bfloat16, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = fusedstep.SGD([param], lr=share * unit, master="correction")
    for _ in range(steps):
        optimizer.step()
    moved = 1 - values_of(optimizer, param).mean(dtype=np.float64)
    error = unit * (share * (1 - share) * steps / size) ** 0.5
    assert abs(moved - steps * share * unit) < 5 * error + steps * 2.0**-25  # float32's rounding


def test_values_stay_close_to_those_of_float32_parameters() -> None:
    """Each step rounds by less than 2^-15 of the value, up or down, and nothing adds up."""
    (param,) = make_params((10_000,), dtype=torch.bfloat16)
    wide = param.detach().float().requires_grad_()
    ours = fusedstep.AdamW([param], lr=1e-4, weight_decay=0.1, master="correction")
    exact = fusedstep.AdamW([wide], lr=1e-4, weight_decay=0.1)
    steps = 100
    for step in range(steps):
        set_grads([wide], seed=step)
        param.grad = None
        param.grad_dtype = None
        param.grad = wide.grad.clone()
        ours.step()
        exact.step()
    value = wide.detach().numpy()
    differences = (values_of(ours, param) - value) / np.abs(value)
    assert np.abs(differences).max() < 2.0**-15 * steps**0.5 * 3
    assert abs(differences.mean(dtype=np.float64)) < 2.0**-15 * (steps / value.size) ** 0.5 * 3


@pytest.mark.parametrize(
    ("master", "dtype"), [("remainder", torch.int16), ("correction", torch.uint8)]
)
def test_a_written_zero_is_a_zero_and_an_infinity_stays(master: str, dtype: torch.dtype) -> None:
    """As where weights are pruned: whatever bits were kept of the old value."""
    written = torch.tensor([0.0, -0.0, torch.inf, -torch.inf], dtype=torch.bfloat16)
    param = written.repeat_interleave(2**16).requires_grad_()
    param.grad = torch.zeros_like(param)
    optimizer = fusedstep.SGD([param], lr=1.0, master=master)
    kept = torch.arange(2**16, dtype=torch.int32).to(dtype)
    optimizer.state[param][master] = kept.repeat(4)
    optimizer.step()
    assert_same_bits(param.detach(), written.repeat_interleave(2**16))


def test_it_is_saved_as_it_is_and_loaded_from_floats_too() -> None:
    """All 256 of them; FSDP1 sends no integers."""
    bits = torch.arange(2**8, dtype=torch.uint8)
    for order in (bits.view(16, 16), bits.view(16, 16).T):
        param = torch.zeros_like(order, dtype=torch.bfloat16).requires_grad_()
        optimizer = fusedstep.SGD([param], master="correction")
        optimizer.state[param]["correction"] = order.clone()
        saved = optimizer.state_dict()
        assert saved["state"][0].keys() == {"correction"}
        assert_same_bits(saved["state"][0]["correction"], order)
        for form in (order, order.float()):
            twin = torch.zeros_like(param).requires_grad_()
            loading = fusedstep.SGD([twin], master="correction")
            loading.load_state_dict(saved | {"state": {0: {"correction": form}}})
            assert_same_bits(loading.state[twin]["correction"], order)
            assert loading.state[twin]["correction"].stride() == order.stride()


def test_a_run_continues_from_a_checkpoint_bit_for_bit() -> None:
    """The random numbers too, for a rule that needs no step count by itself."""
    params = make_params((300,), (66, 130), dtype=torch.bfloat16)
    optimizer = fusedstep.SGD(params, lr=1e-4, momentum=0.9, master="correction", seed=5)
    for step in range(2):
        set_grads(params, seed=step)
        optimizer.step()
    twins = copies(params)
    other = fusedstep.SGD(twins, lr=1e-4, momentum=0.9, master="correction", seed=5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2, 4):
        for one in (params, twins):
            set_grads(one, seed=step)
        optimizer.step()
        other.step()
    assert_same_run(other, optimizer)
