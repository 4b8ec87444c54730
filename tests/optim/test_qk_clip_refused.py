"""What QK-Clip refuses, in Python and in the op, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits

W, L = torch.ones(6, 4), torch.full((2,), 99.0)
SPARSE = torch.eye(4).to_sparse()
REFUSED: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], str, str, str, type[Exception]]] = {
    "threshold 0": (lambda: (W, L, 0), "threshold", "be above 0", "0.0", ValueError),
    "threshold -1": (lambda: (W, L, -1.0), "threshold", "be above 0", "-1.0", ValueError),
    "threshold NaN": (lambda: (W, L, math.nan), "threshold", "be above 0", "nan", ValueError),
    "no threshold": (lambda: (W, L, None), "threshold", "be a number", "NoneType", TypeError),
    "a list": (lambda: ([W, [1.0]], [L, L], 1), "weights[1]", "be a tensor", "list", TypeError),
    "no tensor": (lambda: (W, [2.0], 1), "max_logits[0]", "be a tensor", "float", TypeError),
    "too few": (
        lambda: ([W, W.clone()], [L], 1),
        "max_logits", "have length 2, a tensor for each weight", "1", ValueError,
    ),
    "integers": (
        lambda: ([W, torch.ones(4, dtype=torch.int32)], [L, L], 1),
        "weights[1]", "be float32, float64, bfloat16 or float16", "torch.int32", TypeError,
    ),
    "integer logits": (
        lambda: (W, L.int(), 1),
        "max_logits[0]", "be float32, float64, bfloat16 or float16", "torch.int32", TypeError,
    ),
    "sparse": (lambda: (SPARSE, L, 1), "weights[0]", "be dense", "torch.sparse_coo", TypeError),
    "no rows": (
        lambda: ([W, torch.tensor(1.0)], [L, L], 1),
        "weights[1]", "have one dimension or more", r"shape \(\)", ValueError,
    ),
    "rows": (
        lambda: ([W, torch.ones(5, 4)], [L, L], 1),
        "weights[1]", r"have a multiple of 2 rows, as max_logits\[1\] has 2 heads",
        r"shape \(5, 4\)", ValueError,
    ),
    "no heads": (
        lambda: (W, torch.ones(0), 1),
        "weights[0]", r"have a multiple of 0 rows, as max_logits\[0\] has 0 heads",
        r"shape \(6, 4\)", ValueError,
    ),
    "logits of two dimensions": (
        lambda: (W, L.view(2, 1), 1),
        "max_logits[0]", "have one dimension", r"shape \(2, 1\)", ValueError,
    ),
    "overlap": (
        lambda: ([W, W[2:]], [L, L], 1),
        "weights[1]", r"not overlap weights\[0\]", "shared memory", ValueError,
    ),
    "overlap in itself": (
        lambda: (torch.ones(4).expand(6, 4), L, 1),
        "weights[0]", "not overlap itself", r"strides \(0, 1\)", ValueError,
    ),
    "meta": (
        lambda: (torch.ones(6, 4, device="meta"), L, 1),
        "weights[0]", "be on a CPU or a CUDA device", "meta", ValueError,
    ),
    "zeros": (
        lambda: (torch._efficientzerotensor((6, 4)), L, 1),
        "weights[0]", "hold its values in memory", "a lazy zero", ValueError,
    ),
    "a slice of FSDP1": (
        lambda: (flattened(), L, 1),
        "weights[0]", "be a weight with rows, not FSDP1's slice of one", r"shape \(6,\)", TypeError,
    ),
}  # fmt: skip


def flattened() -> Tensor:
    weight = torch.ones(6)
    weight._fsdp_flattened = True
    return weight


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refuses_and_changes_nothing(case: Any) -> None:
    arguments, argument, must, got, kind = case
    version = W._version
    with refuses("qk_clip_", argument, must, got, kind):
        fusedstep.qk_clip_(*arguments())
    assert_same_bits(W, torch.ones(6, 4), "the first weight")
    assert W._version == version


@pytest.mark.gpu
def test_refuses_logits_on_another_device() -> None:
    must = "be on its weight's device cuda:0"
    with refuses("qk_clip_", "max_logits[0]", must, "cpu", ValueError):
        fusedstep.qk_clip_(W.cuda(), L, 1)


def wrong(**changed: Any) -> tuple[Any, ...]:
    arguments = {"weights": [W], "logits": [L], "head_dims": [3], "first_rows": [0], "threshold": 1}
    return tuple((arguments | changed).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (wrong(weights=[]), "weights must not be empty, got 0"),
        (wrong(logits=[]), "max_logits must have length 1, got 0"),
        (wrong(head_dims=[]), "head_dims must have length 1, got 0"),
        (wrong(first_rows=[0, 0]), "first_rows must have length 1, got 2"),
        (wrong(threshold=0.0), "threshold must be above 0, got 0"),
        (wrong(threshold=math.nan), "threshold must be above 0, got nan"),
        (wrong(weights=[torch.tensor(1.0)]), r"weights\[0\] must have rows, got"),
        (wrong(weights=[W.int()]), r"weights\[0\] must be a dense float32, float64,"),
        (wrong(weights=[W[:, ::2]]), r"weights\[0\] must have its elements in memory without gaps"),
        (wrong(logits=[L.double()]), r"max_logits\[0\] must be a dense float32 tensor"),
        (wrong(logits=[L.view(2, 1)]), r"max_logits\[0\] must have 1 dimension"),
        (wrong(logits=[torch.ones(4)[::2]]), r"max_logits\[0\] must be contiguous"),
        (wrong(head_dims=[0]), r"head_dims\[0\] must be at least 1, got 0"),
        (wrong(head_dims=[2]), r"first_rows\[0\] must be the first of rows that have heads, got 0"),
        (wrong(first_rows=[1]), r"first_rows\[0\] must be the first of rows that have heads"),
        (wrong(first_rows=[-1]), r"first_rows\[0\] must be the first of rows that have heads"),
    ],
)  # fmt: skip
def test_the_op_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^qk_clip_: {message}"):
        torch.ops.fusedstep.qk_clip_(*arguments)
    assert_same_bits(W, torch.ones(6, 4), "weight")
