"""The ops that turn state into 8-bit codes and back, outside of a step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from tests.reference import quantize
from tests.support.op_arguments import randn
from tests.support.tensors import bits_in_memory_order, laid_out

ops = torch.ops.fusedstep
SHAPES = [(), (0,), (1,), (127,), (128,), (129,), (3, 4, 50), (70, 33)]
signs = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def values(shape: tuple[int, ...], signed: bool, layout: str = "plain") -> Tensor:
    (x,) = randn(shape)
    x = x * torch.logspace(-20, 5, max(x.numel(), 1))[: x.numel()].view(shape)
    return laid_out(x if signed else x.abs(), layout)


@pytest.mark.parametrize("layout", ["plain", "reversed"])
@pytest.mark.parametrize("shape", SHAPES)
@signs
def test_equal_the_reference(signed: bool, shape: tuple[int, ...], layout: str) -> None:
    x = values(shape, signed, layout)
    codes, scales = ops.encode_state(x, signed)
    assert (codes.shape, codes.stride()) == (x.shape, x.stride())
    flat, half = bits_in_memory_order(x, x), np.full(x.numel(), 0x8000, np.uint16)
    encode = quantize.encode_signed if signed else quantize.encode_unsigned
    expected, expected_scales = encode(flat, half)
    np.testing.assert_array_equal(bits_in_memory_order(codes, x), expected)
    np.testing.assert_array_equal(scales.numpy(), expected_scales)
    decode = quantize.decode_signed if signed else quantize.decode_unsigned
    back = ops.decode_state(codes, scales)
    np.testing.assert_array_equal(bits_in_memory_order(back, x), decode(expected, expected_scales))
    assert back.stride() == x.stride()


@signs
def test_no_other_code_is_nearer(signed: bool) -> None:
    x = values((3, 4, 50), signed).flatten()
    codes, scales = ops.encode_state(x, signed)
    error = (ops.decode_state(codes, scales) - x).abs()
    info = torch.iinfo(codes.dtype)
    for step in (-1, 1):
        other = (codes.int() + step).clamp(max(info.min, -127), info.max).to(codes.dtype)
        further = (ops.decode_state(other, scales) - x).abs()
        # A millionth of a code: the comparison itself is rounded. Only zero becomes zero unsigned.
        assert (error <= further * (1 + 1e-4) + 1e-30)[signed | (codes != 1)].all()


@signs
def test_a_second_trip_changes_nothing(signed: bool) -> None:
    codes, scales = ops.encode_state(values((70, 33), signed), signed)
    again = ops.encode_state(ops.decode_state(codes, scales), signed)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], scales)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@signs
def test_a_number_that_is_none_stays_in_its_block(signed: bool, bad: float) -> None:
    x = torch.ones(300)
    x[200] = bad
    back = ops.decode_state(*ops.encode_state(x, signed))
    assert not back[128:256].isfinite().any()
    assert (back[:128] == 1).all()


@pytest.mark.parametrize("layout", ["plain", "reversed"])
@pytest.mark.parametrize("shape", [(), (0, 4), (1, 129), (33, 70)])
@signs
def test_opcheck(signed: bool, shape: tuple[int, ...], layout: str) -> None:
    x = values(shape, signed, layout)
    opcheck(ops.encode_state.default, (x, signed))
    opcheck(ops.decode_state.default, ops.encode_state(x, signed))


CODES = torch.zeros(300, dtype=torch.int8)


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("encode_state", (torch.ones(3).double(), True), "x must be a dense float32 tensor"),
        ("encode_state", (torch.ones(3).bfloat16(), True), "x must be a dense float32 tensor"),
        ("encode_state", (torch.ones(8)[::2], True), "x must have its elements in memory without"),
        ("decode_state", (torch.ones(3), torch.ones(1)), "codes must be a dense int8 or uint8"),
        ("decode_state", (CODES[::2], torch.ones(2)), "codes must have its elements in memory"),
        ("decode_state", (CODES, torch.ones(3).double()), "scales must be a gapless float32"),
        ("decode_state", (CODES, torch.ones(6)[::2]), "scales must be a gapless float32"),
        ("decode_state", (CODES, torch.ones(2)), "scales must have one element .*, got 2"),
        ("decode_state", (CODES, torch.ones(4)), "scales must have one element .*, got 4"),
    ],
)
def test_refuse(op: str, arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        getattr(ops, op)(*arguments)
