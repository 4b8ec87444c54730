"""The entries of a parameter's state, their dtypes and bytes, and its codes outside a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.library import opcheck

import fusedstep
from tests.reference import quantize
from tests.support.modes import BFLOAT16, MODES
from tests.support.op_arguments import randn
from tests.support.optimizers import Kind
from tests.support.refusals import refuses
from tests.support.tensors import (
    assert_same_bits,
    bits_in_memory_order,
    laid_out,
    make_params,
    name_of,
    set_grads,
)


@contextmanager
def one_rank() -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


# --- entries --------------------------------------------------------------------------------------

ENTRIES: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {
    "bfloat16 state": {
        "exp_avg": (torch.bfloat16, (2, 150)), "exp_avg_sq": (torch.bfloat16, (2, 150)),
    },
    "int8 state": {
        "exp_avg": (torch.int8, (2, 150)), "exp_avg_scale": (torch.float32, (3,)),
        "exp_avg_sq": (torch.uint8, (2, 150)), "exp_avg_sq_scale": (torch.float32, (3,)),
    },
    "average of float64": {
        "exp_avg": (torch.float64, (2, 150)), "exp_avg_sq": (torch.float64, (2, 150)),
        "ema": (torch.float64, (2, 150)),
    },
    "remainder": {
        "exp_avg": (torch.float32, (2, 150)), "exp_avg_sq": (torch.float32, (2, 150)),
        "remainder": (torch.int16, (2, 150)),
    },
    "correction": {
        "exp_avg": (torch.float32, (2, 150)), "exp_avg_sq": (torch.float32, (2, 150)),
        "correction": (torch.uint8, (2, 150)),
    },
    "master": {
        "exp_avg": (torch.float32, (2, 150)), "exp_avg_sq": (torch.float32, (2, 150)),
        "master": (torch.float32, (2, 150)),
    },
}  # fmt: skip


@pytest.mark.parametrize("mode", ENTRIES)
def test_entries_of_the_state(mode: str) -> None:
    options, dtype = MODES[mode]
    params = make_params((2, 150), **dtype)
    optimizer = fusedstep.AdamW(params, **options)
    set_grads(params)
    optimizer.step()
    state = optimizer.state[params[0]]
    found = {name: (value.dtype, tuple(value.shape)) for name, value in state.items()}
    assert found == {**ENTRIES[mode], "step": (torch.float32, ())}


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((6, 256), (6, 2)), ((3, 5, 128), (3, 5, 1)), ((64, 64, 2), (64, 1)),
        ((4, 8, 4, 8), (4, 2)), ((0, 128), (0, 1)), ((4, 0), (4, 0)), ((256,), (2,)),
        ((6, 100), (5,)), ((), (1,)),
    ],
)  # fmt: skip
def test_scales_lie_in_rows_where_rows_are_whole_blocks(
    shape: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    for param, expected in (
        (torch.zeros(shape), scales),
        (torch.zeros(shape[::-1]).permute(list(range(len(shape)))[::-1]), None),  # another order
    ):
        optimizer = fusedstep.Lion([param.requires_grad_()], state_dtype="int8")
        param.grad = torch.ones_like(param)
        optimizer.step()
        found = tuple(optimizer.state[param]["exp_avg_scale"].shape)
        in_order = expected is not None or param.is_contiguous()
        assert found == (scales if in_order else (-(-param.numel() // 128),))


@pytest.mark.parametrize(
    ("shape", "coded"),
    [
        ((2, 128), True), ((64, 64, 2), True), ((4, 8, 4, 8), True), ((3, 5, 256), True),
        ((256,), False), ((4096,), False), ((128, 100), False), ((128, 2, 32), False), ((), False),
    ],
)  # fmt: skip
def test_codes_are_sent_where_last_dimensions_but_the_first_are_blocks(
    shape: tuple[int, ...], coded: bool
) -> None:
    """Also where they are kept as a DTensor; what is not contiguous is decoded, or float32."""
    dims = tuple(range(len(shape)))[::-1]
    turned = torch.zeros(shape[::-1]).permute(dims)
    with one_rank() as mesh:
        for value in (torch.zeros(shape), turned):
            expected = coded and value.is_contiguous()
            for param in (value, DTensor.from_local(value, mesh, [Replicate()])):
                optimizer = fusedstep.Lion([param.requires_grad_()], state_dtype="int8")
                param.grad = torch.ones_like(param)
                optimizer.step()
                kept = optimizer.state[param]["exp_avg"].dtype
                assert (kept == torch.int8) == (expected or param is value)
                saved = optimizer.state_dict()["state"][0]
                assert ("exp_avg.codes" in saved) == expected
                if not expected:
                    assert saved["exp_avg"].dtype == torch.float32


def test_shards_that_are_not_contiguous_are_refused_codes() -> None:
    with one_rank() as mesh:
        shard = torch.zeros(128, 256).T
        placed = DTensor.from_local(
            shard, mesh, [Shard(0)], run_check=False, shape=shard.shape, stride=(128, 1)
        )
        must = "have contiguous shards where state_dtype='int8'"
        got = r"\(256, 128\) with strides \(1, 256\)"
        with refuses("AdamW", "param_groups[0]['params'][0]", must, got, ValueError):
            fusedstep.AdamW([placed.requires_grad_()], state_dtype="int8")
        fusedstep.AdamW([placed])


@pytest.mark.parametrize("kind", [Kind("SGD", {}), Kind("Lion", {})], ids=lambda kind: kind.name)
def test_steps_are_counted_where_random_numbers_need_it(kind: Kind) -> None:
    for dtype, options, counts in [
        (torch.bfloat16, {"stochastic_rounding": True}, True),
        (torch.float32, {"state_dtype": "int8"}, kind.name == "Lion"),
        (torch.bfloat16, {"master": "remainder", "ema_decay": 0.5}, False),
        (torch.bfloat16, {"master": "correction"}, True),
    ]:
        params = make_params((5,), dtype=dtype)
        optimizer = kind.ours(params, **options)
        for _ in range(3):
            set_grads(params)
            optimizer.step()
        assert float(optimizer.state[params[0]].get("step", 0)) == (3 if counts else 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 8.0), ({"state_dtype": torch.bfloat16}, 4.0), ({"state_dtype": "int8"}, 2 + 8 / 128),
        ({"state_dtype": "int8", "master": "remainder"}, 4 + 8 / 128),
        ({"state_dtype": "int8", "master": "correction"}, 3 + 8 / 128),
        ({"master": "float32"}, 12.0), ({"ema_decay": 0.9}, 12.0),
    ],
)  # fmt: skip
def test_bytes_of_a_checkpoint(options: dict[str, Any], expected: float) -> None:
    params = make_params((100, 128), (128, 100), **BFLOAT16)
    optimizer = fusedstep.AdamW(params, **options)
    set_grads(params)
    optimizer.step()
    rows, others = optimizer.state_dict()["state"].values()
    size = sum(value.nbytes for name, value in rows.items() if name != "step")
    assert size / params[0].numel() == expected
    if options.get("state_dtype") == "int8":  # decoded, unless rows are whole blocks
        assert {others[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=name_of)
def test_initial_accumulator_value_is_encoded(state_dtype: Any) -> None:
    params = make_params((300,), ())
    optimizer = fusedstep.Adagrad(params, initial_accumulator_value=0.5, state_dtype=state_dtype)
    exported = optimizer.to_torch_state_dict()["state"]
    for state in exported.values():
        assert_same_bits(state["sum"], torch.full_like(state["sum"], 0.5, dtype=torch.float32))


@pytest.mark.parametrize("grad_dtype", [None, torch.float32], ids=["same", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_state_of_half_precision_parameters_is_float32(
    dtype: torch.dtype, grad_dtype: torch.dtype | None
) -> None:
    params = make_params((9,), dtype=dtype)
    optimizer = fusedstep.AdamW(params, amsgrad=True)
    set_grads(params, dtype=grad_dtype)
    optimizer.step()
    state = optimizer.state[params[0]]
    assert {name: value.dtype for name, value in state.items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"), torch.float32
    )


def test_state_of_float64_parameters_is_float64() -> None:
    params = make_params((9,), dtype=torch.float64)
    optimizer = fusedstep.AdamW(params)
    set_grads(params)
    optimizer.step()
    state = optimizer.state[params[0]]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float64
    assert state["step"].dtype == torch.float32


# --- codes ----------------------------------------------------------------------------------------

ops = torch.ops.fusedstep
SHAPES = [(), (0,), (1,), (127,), (128,), (129,), (3, 4, 50), (70, 33)]
every_sign = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def values(shape: tuple[int, ...], signed: bool, layout: str = "plain") -> Tensor:
    (x,) = randn(shape)
    x = x * torch.logspace(-20, 5, max(x.numel(), 1))[: x.numel()].view(shape)
    return laid_out(x if signed else x.abs(), layout)


@pytest.mark.parametrize("layout", ["plain", "reversed"])
@pytest.mark.parametrize("shape", SHAPES)
@every_sign
def test_codes_equal_the_reference(signed: bool, shape: tuple[int, ...], layout: str) -> None:
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


@every_sign
def test_no_other_code_is_nearer(signed: bool) -> None:
    x = values((3, 4, 50), signed).flatten()
    codes, scales = ops.encode_state(x, signed)
    error = (ops.decode_state(codes, scales) - x).abs()
    info = torch.iinfo(codes.dtype)
    for step in (-1, 1):
        other = (codes.int() + step).clamp(-127 if signed else 3, info.max).to(codes.dtype)
        further = (ops.decode_state(other, scales) - x).abs()
        # A little: the comparison itself is rounded.
        assert (error <= further * (1 + 1e-4) + 1e-30).all()


@every_sign
def test_encoding_again_changes_nothing(signed: bool) -> None:
    codes, scales = ops.encode_state(values((70, 33), signed), signed)
    again = ops.encode_state(ops.decode_state(codes, scales), signed)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], scales)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_sign
def test_a_nan_or_infinity_stays_in_its_block(signed: bool, bad: float) -> None:
    x = torch.ones(300)
    x[200] = bad
    back = ops.decode_state(*ops.encode_state(x, signed))
    assert not back[128:256].isfinite().any()
    assert (back[:128] == 1).all()


@pytest.mark.parametrize(
    ("shape", "layout", "signed"),
    [((), "plain", True), ((0, 4), "reversed", False), ((33, 70), "reversed", True)],
)
def test_opcheck(shape: tuple[int, ...], layout: str, signed: bool) -> None:
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
        ("decode_state", (CODES, torch.ones(3).double()), "scales must be a dense float32"),
        ("decode_state", (CODES, torch.ones(6)[::2]), "scales must have its elements in"),
        ("decode_state", (CODES, torch.ones(2)), "scales must have one .* shape .2. "),
        ("decode_state", (CODES, torch.ones(4)), "scales must have one .* shape .4. "),
    ],
)
def test_the_ops_refuse(op: str, arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        getattr(ops, op)(*arguments)
