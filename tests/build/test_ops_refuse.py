"""The ops' own checks, for those who call them without the Python layer's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support.tensors import assert_same_bits
from tests.support.op_arguments import (
    PLAN,
    UNCLIPPED,
    randn,
    step_arguments,
    table_arguments,
    values_of,
)
from torch import Tensor

from fusedstep import _C

ops = torch.ops.fusedstep


def replace(index: int, value: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    def change(arguments: list[Any]) -> None:
        arguments[index] = value(arguments[index])

    return change


def swap(index: int, tensor: Callable[[Tensor], Tensor]) -> Callable[[list[Any]], None]:
    return replace(index, lambda tensors: [*tensors[:-1], tensor(tensors[-1])])


RULE, PARAMS, GRADS, ARRAYS, ROLES, COUNTS, SIZES, GROUPS = range(8)
SEED, LRS, LR_GROUPS, NORM, SCALE, FOUND = range(8, 14)
# The arrays of the last parameter: two moments, their maximum, the step.
LAST_MOMENT, LAST_STEP = 6, 9


def array(index: int, tensor: Callable[[Tensor], Tensor]) -> Callable[[list[Any]], None]:
    return replace(ARRAYS, lambda x: [*x[:index], tensor(x[index]), *x[index + 1 :]])


WRONG: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "no such rule": (replace(RULE, lambda x: "none"), "rule must be one of .*, got none"),
    "too few grads": (replace(GRADS, lambda x: x[:-1]), "grads must have length 3, got 2"),
    "too few arrays": (replace(ARRAYS, lambda x: x[1:]), "roles must have length 9, got 10"),
    "too few roles": (replace(ROLES, lambda x: x[1:]), "roles must have length 10, got 9"),
    "small counts": (replace(COUNTS, lambda x: [3, 3, 3]), "arrays must have length 9, got 10"),
    "large counts": (replace(COUNTS, lambda x: [3, 3, 5]), r"array_counts\[2\] must not .*, got 5"),
    "no counts": (replace(COUNTS, lambda x: []), "array_counts must have length 3, got 0"),
    "no role": (replace(ROLES, lambda x: [9, *x[1:]]), r"roles\[0\] must be one of .*, got 9"),
    "role twice": (replace(ROLES, lambda x: [0, 0, *x[2:]]), r"roles\[1\] must be .*, got 0"),
    "group sizes": (replace(SIZES, lambda x: [2, 2]), r"group_sizes\[1\] must .*, got 2"),
    "small groups": (replace(SIZES, lambda x: [1, 1]), "params must have length 2, got 3"),
    "other states": (replace(SIZES, lambda x: [1, 2]), r"params\[2\] must have as many .*, got 3"),
    "more groups": (replace(SIZES, lambda x: [1, 1, 1]), "groups must have length 3, got 2"),
    "odd values": (replace(GROUPS, lambda x: x[1:]), "groups must have 11 values .*, got 21"),
    "no lr": (replace(LRS, lambda x: []), "lr_groups must have length 0, got 1"),
    "two lrs": (replace(LRS, lambda x: x * 2), "lr_groups must have length 2, got 1"),
    "lr of none": (replace(LR_GROUPS, lambda x: [2]), r"lr_groups\[0\] must be a .*, got 2"),
    "float64 lr": (swap(LRS, Tensor.double), r"lrs\[0\] must be one float32 value, got .*"),
    "long lr": (swap(LRS, lambda x: x.expand(2)), r"lrs\[0\] must be one .*, got .* shape \[2\] .*"),
    "float64 grad_scale": (replace(SCALE, Tensor.double), "grad_scale must be one float32 .*"),
    "float64 found_inf": (replace(FOUND, Tensor.double), "found_inf must be one float32 .*"),
    "float32 norm": (replace(NORM, Tensor.float), "norm must be one float64 value, got .*"),
    "integer param": (swap(PARAMS, Tensor.int), r"params\[2\] must be a dense float32.*, got .*"),
    "gaps": (swap(PARAMS, lambda x: torch.ones(10)[::2]), r"params\[2\] must have its .* strides \[2\] on cpu"),
    "expanded": (swap(PARAMS, lambda x: x[:1].expand(5)), r"params\[2\] must have its .* strides \[0\] on cpu"),
    "integer grad": (swap(GRADS, Tensor.int), r"grads\[2\] must be a dense float32, .* tensor, got int32 .*"),
    "other shape": (swap(GRADS, lambda x: x[:-1]), r"grads\[2\] must have its parameter's .*, got .*\[4\] .*"),
    "half state": (array(LAST_MOMENT, Tensor.half), r"arrays\[6\] must be float32, .*, got .*"),
    "no scales": (array(LAST_MOMENT, Tensor.char), r"params\[2\] must have scales .*, got state 0 of 8 .*"),
    "other state": (array(LAST_MOMENT, lambda x: x[:-1]), r"arrays\[6\] must have its .*, got .*"),
    "long step": (array(LAST_STEP, lambda x: x.expand(2)), r"arrays\[9\] must be one .*, got .*\[2\] .*"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_step_op_refuses(name: str) -> None:
    change, message = WRONG[name]
    arguments = step_arguments()
    change(arguments)
    written = [*arguments[PARAMS], *arguments[ARRAYS]]
    before = [t.clone() for t in written]
    with pytest.raises(RuntimeError, match=f"^step_: {message}$"):
        ops.step_(*arguments)
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
    must = r"\[1\] must have its elements in memory without gaps, got .* and strides \[.*\] on cpu$"
    with pytest.raises(RuntimeError, match="^total_norm: tensors" + must):
        ops.total_norm([norm, tensor])
    with pytest.raises(RuntimeError, match="^clip_by_norm_: tensors" + must):
        ops.clip_by_norm_([torch.ones(2), tensor], norm, 1.0)
    assert bool((base == 1).all())
    table = _C.TensorTable()
    params = [torch.ones(2), tensor]
    with pytest.raises(RuntimeError, match="^table_assign: params" + must):
        ops.table_assign(table.address, params, [], [], [0, 0], [2], [0, 1], [0, 0])


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
    ops.table_assign(table.address, [torch.ones(4)], [], [], [0], [1], [0], [0])
    assert not ops.table_refresh(table.address, [LAZY[name]()], [])
    assert table.num_rows == 0


@pytest.mark.parametrize("missing", [[3], [-1], [0, 0], [1, 0], [0, 1]])
def test_table_op_refuses_wrong_positions_of_missing_gradients(missing: list[int]) -> None:
    table = _C.TensorTable()
    params, grads, assigned = table_arguments()
    ops.table_assign(table.address, params, *assigned)
    assert not ops.table_refresh(table.address, grads[:2], missing)
    assert table.num_rows == 0
    with pytest.raises(RuntimeError, match=r"^table_step_: table must have gradients, got none"):
        ops.table_step_(table.address, PLAN.address, params[0], *UNCLIPPED)


@pytest.mark.parametrize("first", [-1, 2**33 - 2, 2**34 - 1])
def test_table_op_refuses_chunks_whose_random_numbers_have_two_keys(first: int) -> None:
    table = _C.TensorTable()
    must = r"^table_assign: first_elements\[0\] must be 0 or more, and .*, got -?\d+$"
    with pytest.raises(RuntimeError, match=must):
        ops.table_assign(table.address, [torch.ones(4)], [], [], [0], [1], [0], [first])
    for allowed in (1, 2**33 - 4, 2**34 - _C.CHUNK_SIZE):
        ops.table_assign(table.address, [torch.ones(4)], [], [], [0], [1], [0], [allowed])


def test_table_op_refuses_groups_with_other_states() -> None:
    table = _C.TensorTable()
    params, grads, assigned = table_arguments()
    ops.table_assign(table.address, params, *assigned)
    assert ops.table_refresh(table.address, grads, [])
    plan = _C.StepPlan("adam", values_of({"amsgrad": 1.0}), 0, [], -1.0, False)
    with pytest.raises(RuntimeError, match=r"^table_step_: groups\[0\] must need as many"):
        ops.table_step_(table.address, plan.address, params[0], *UNCLIPPED)


@pytest.mark.parametrize("wrong", [3, "cpu", object(), torch.ones(2).__dlpack__()], ids=type)
def test_use_device_refuses_what_is_no_device(wrong: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^use_device: device must be a capsule named fused.*, got"
    ):
        _C.use_device("cpu", wrong)


def test_use_device_refuses_other_types_and_a_missing_cpu() -> None:
    with pytest.raises(ValueError, match=r'^use_device: type must be "cpu" or "cuda", got "mps"$'):
        _C.use_device("mps", _C.DEVICE)
    with pytest.raises(ValueError, match=r"^use_device: device must be a capsule .*, got None$"):
        _C.use_device("cpu", None)


@pytest.mark.parametrize("name", ["inverse_of_cholesky_factor", "eigh", "svd"])
def test_a_cpu_has_no_solvers_of_its_own(name: str) -> None:
    assert not _C.has_solvers("cpu")
    with pytest.raises(RuntimeError, match=rf"^fusedstep: {name} is for NVIDIA GPUs; on a CPU"):
        getattr(ops, name)(torch.eye(3, dtype=torch.float64)[None])


@pytest.mark.gpu
def test_cuda_tensors_without_a_device_get_one_sentence() -> None:
    previous = _C.use_device("cuda", None, reason="for this test")
    try:
        with pytest.raises(RuntimeError, match=r"^fusedstep: no CUDA kernels \(for this test\); m"):
            ops.total_norm([torch.ones(3, device="cuda")])
    finally:
        assert _C.use_device("cuda", previous) is None
