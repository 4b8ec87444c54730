"""The ops' own checks, for those who call them without the Python layer's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from op_arguments import TABLE_OPTIONS, adam_arguments, randn, with_fields
from torch import Tensor

from fusedstep import _C

ops = torch.ops.fusedstep


def replace(index: int, value: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    def change(arguments: list[Any]) -> None:
        arguments[index] = value(arguments[index])

    return change


def swap(index: int, tensor: Callable[[Tensor], Tensor]) -> Callable[[list[Any]], None]:
    return replace(index, lambda tensors: [*tensors[:-1], tensor(tensors[-1])])


WRONG: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "too few grads": (replace(1, lambda x: x[:-1]), "adam_: grads must have length 3, got 2"),
    "too few exp_avgs": (replace(2, lambda x: x[1:]), "adam_: exp_avgs must have length 3, got 2"),
    "no exp_avg_sqs": (replace(3, lambda x: []), "adam_: exp_avg_sqs must have length 3, got 0"),
    "no largest": (replace(4, lambda x: []), "adam_: states must .*, got 6"),
    "too few steps": (replace(5, lambda x: x[1:]), "adam_: steps must have length 3, got 2"),
    "group sizes": (replace(6, lambda x: [2, 2]), r"adam_: group_sizes\[1\] must .*, got 2"),
    "small groups": (replace(6, lambda x: [1, 1]), "adam_: params must have length 2, got 3"),
    "more groups": (replace(6, lambda x: [1, 1, 1]), "adam_: groups must have length 3, got 2"),
    "odd fields": (replace(7, lambda x: x[1:]), "adam_: groups must have 9 numbers .*, got 17"),
    "no lr": (replace(8, lambda x: []), "adam_: lrs must have one rate .*, got 0"),
    "two lrs": (replace(8, lambda x: x * 2), "adam_: lrs must have length 1, got 2"),
    "float64 lr": (swap(8, Tensor.double), r"adam_: lrs\[0\] must be one float32 value, got .*"),
    "long lr": (swap(8, lambda x: x.expand(2)), r"adam_: lrs\[0\] must be one .*, got 2 values.*"),
    "float64 grad_scale": (replace(10, Tensor.double), "adam_: grad_scale must be one float32 .*"),
    "float64 found_inf": (replace(11, Tensor.double), "adam_: found_inf must be one float32 .*"),
    "float32 norm": (replace(9, Tensor.float), "adam_: norm must be one float64 value, got .*"),
    "integer param": (swap(0, Tensor.int), r"adam_: params\[2\] must be a dense float32.*, got .*"),
    "gaps": (swap(0, lambda x: torch.ones(10)[::2]), r"adam_: params\[2\] must have its .*by 2"),
    "expanded": (swap(0, lambda x: x[:1].expand(5)), r"adam_: params\[2\] must have its .*by 0"),
    "integer grad": (swap(1, Tensor.int), "adam_: grads must have .* a supported dtype, got .*"),
    "other shape": (swap(1, lambda x: x[:-1]), "adam_: grads must have their parameters' .*"),
    "half state": (swap(2, Tensor.half), r"adam_: states\[2\] must be float32, .*, got .*"),
    "other state": (swap(3, lambda x: x[:-1]), r"adam_: states\[5\] must have its .*, got .*"),
    "long step": (swap(5, lambda x: x.expand(2)), r"adam_: steps\[2\] must be one .*, got 2 .*"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_adam_op_refuses(name: str) -> None:
    change, message = WRONG[name]
    arguments = adam_arguments()
    change(arguments)
    written = [t for tensors in arguments[:6] for t in tensors]
    before = [t.clone() for t in written]
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        ops.adam_(*arguments)
    for tensor, value in zip(written, before, strict=True):
        assert_same_bits(tensor, value, "what must stay")


def test_norm_ops_refuse() -> None:
    tensors = randn((3,), (4,))
    with pytest.raises(RuntimeError, match=r"^total_norm: norm_type must be 2, 1 or inf, got 3$"):
        ops.total_norm(tensors, 3.0)
    norm = torch.tensor(1.0)
    with pytest.raises(RuntimeError, match=r"^clip_by_norm_: norm must be one float64 value, got"):
        ops.clip_by_norm_(tensors, norm, 1.0)
    with pytest.raises(RuntimeError, match=r"^total_norm: tensors\[1\] must be a dense float32"):
        ops.total_norm([tensors[0], torch.ones(3, dtype=torch.int64)])


def test_norm_ops_refuse_an_empty_list() -> None:
    with pytest.raises(RuntimeError, match=r"^total_norm: tensors must not be empty, got 0$"):
        ops.total_norm([], 2.0, torch.tensor(1.0))
    norm = torch.tensor(1.0, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"^clip_by_norm_: tensors must not be empty, got 0$"):
        ops.clip_by_norm_([], norm, 1.0)


GAPPED = {
    "every second": lambda x: x.flatten()[::2],
    "columns": lambda x: x[:, 1:],
    "expanded": lambda x: x[0].expand(4, *x[0].shape),
    "expanded inside": lambda x: x[:, :1].expand(x.shape),
    "overlapping": lambda x: x.flatten().unfold(0, 4, 2),
}
GAPLESS = {
    "transposed": lambda x: x.mT,
    "permuted": lambda x: x.permute(2, 0, 1),
    "part": lambda x: x[1:],
    "dimension of one": lambda x: x[:1].as_strided((4, 1, 5), (5, 77, 1)),
    "no elements": lambda x: x[:, :0, ::2],
    "one element": lambda x: x[:1, :1, :1].expand(1, 1, 1),
}


@pytest.mark.parametrize("name", GAPPED)
def test_ops_refuse_elements_with_gaps(name: str) -> None:
    base = torch.ones(3, 4, 5)
    tensor = GAPPED[name](base)
    norm = torch.tensor(2.0, dtype=torch.float64)
    must = r"\[1\] must have its elements in memory without gaps, got sizes and strides \d+ by .*$"
    with pytest.raises(RuntimeError, match="^total_norm: tensors" + must):
        ops.total_norm([norm, tensor])
    with pytest.raises(RuntimeError, match="^clip_by_norm_: tensors" + must):
        ops.clip_by_norm_([torch.ones(2), tensor], norm, 1.0)
    assert bool((base == 1).all())
    table = _C.TensorTable()
    params = [torch.ones(2), tensor]
    states = [torch.zeros_like(p) for p in params]
    steps = [torch.tensor(0.0) for _ in params]
    with pytest.raises(RuntimeError, match="^table_assign: params" + must):
        ops.table_assign(table.address, params, states, steps, [2], [1])


@pytest.mark.parametrize("name", GAPLESS)
def test_ops_take_any_order_of_dimensions(name: str) -> None:
    tensor = GAPLESS[name](torch.randn(3, 4, 5, generator=torch.manual_seed(0)))
    expected = float(tensor.abs().amax()) if tensor.numel() else 0.0
    assert float(ops.total_norm([tensor], math.inf)) == expected


LAZY = {
    "negative": lambda: torch._neg_view(torch.ones(4)),
    "imaginary part of a conjugate": lambda: torch.ones(4, dtype=torch.complex64).conj().imag,
    "conjugate": lambda: torch.ones(4, dtype=torch.complex64).conj(),
    "zero": lambda: torch._efficientzerotensor(4),
}


@pytest.mark.parametrize("name", LAZY)
def test_table_op_refuses_gradients_that_are_not_in_memory(name: str) -> None:
    """The dispatcher would hand over temporary copies, whose addresses must not be kept."""
    table = _C.TensorTable()
    params, states = [torch.ones(4)], [torch.zeros(4), torch.zeros(4)]
    ops.table_assign(table.address, params, states, [torch.tensor(0.0)], [1], [2])
    assert not ops.table_refresh(table.address, [LAZY[name]()], [])
    assert table.num_rows == 0


@pytest.mark.parametrize("missing", [[3], [-1], [0, 0], [1, 0], [0, 1]])
def test_table_op_refuses_wrong_positions_of_missing_gradients(missing: list[int]) -> None:
    table = _C.TensorTable()
    params, grads, exp_avgs, exp_avg_sqs = adam_arguments()[:4]
    steps = [torch.tensor(0.0) for _ in params]
    ops.table_assign(table.address, params, [*exp_avgs, *exp_avg_sqs], steps, [3], [2])
    assert not ops.table_refresh(table.address, grads[:2], missing)
    assert table.num_rows == 0
    with pytest.raises(RuntimeError, match=r"^table_adam_: table must have gradients, got none"):
        ops.table_adam_(table.address, params[0], *TABLE_OPTIONS)


def test_table_op_refuses_groups_with_other_states() -> None:
    table = _C.TensorTable()
    params, grads, exp_avgs, exp_avg_sqs = adam_arguments()[:4]
    steps = [torch.tensor(0.0) for _ in params]
    ops.table_assign(table.address, params, [*exp_avgs, *exp_avg_sqs], steps, [3], [2])
    assert ops.table_refresh(table.address, grads, [])
    with pytest.raises(RuntimeError, match=r"^table_adam_: groups must have the states that"):
        ops.table_adam_(table.address, params[0], with_fields(amsgrad=1.0), *TABLE_OPTIONS[1:])
