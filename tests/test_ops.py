"""The ops themselves: schemas, fakes, torch.compile, version counters, and their own checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bits, make_params, set_grads
from torch import Tensor
from torch.library import opcheck

import fusedstep
from fusedstep import _C

ops = torch.ops.fusedstep
FIELDS = [1e-3, 0.9, 0.999, 1e-8, 1e-2, 1.0, 0.0, 0.0, 0.0]  # csrc/adam_groups.h


_TABLE_OPTIONS = (FIELDS, [], None, 0.0, None, None, -1.0, False)


def with_fields(**changed: float) -> list[float]:
    names = ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled", "maximize", "amsgrad")
    values = dict(zip((*names, "lr_is_tensor"), FIELDS, strict=True)) | changed
    return list(values.values())


def randn(
    *shapes: tuple[int, ...], device: torch.device | str = "cpu", seed: int = 0
) -> list[Tensor]:
    return [p.detach() for p in make_params(*shapes, device=device, seed=seed)]


def scalar(value: float, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def adam_arguments(device: torch.device | str = "cpu") -> list[Any]:
    """Two groups, the second with amsgrad and a tensor lr, clipped and unscaled."""
    shapes = [(3, 4), (), (5,)]
    lists = [randn(*shapes, device=device, seed=seed) for seed in range(4)]
    params, grads, exp_avgs, exp_avg_sqs = lists
    largest = [exp_avg_sqs[2].abs()]
    steps = [scalar(float(i), device) for i in range(3)]
    fields = FIELDS + with_fields(amsgrad=1.0, lr_is_tensor=1.0)
    norm = scalar(3.0, device, torch.float64)
    return [
        params, grads, exp_avgs, [v.abs() for v in exp_avg_sqs], largest, steps, [2, 1], fields,
        [scalar(0.01, device)], norm, scalar(2.0, device), scalar(0.0, device), 1.0, True,
    ]  # fmt: skip


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_opcheck_of_total_norm(norm_type: float, device: torch.device) -> None:
    tensors = randn((3, 4), (0,), (70_000,), device=device)
    opcheck(ops.total_norm.default, (tensors, norm_type))
    opcheck(ops.total_norm.default, (tensors, norm_type, scalar(2.0, device)))


def test_opcheck_of_clip_by_norm(device: torch.device) -> None:
    norm = scalar(3.0, device, torch.float64)
    opcheck(ops.clip_by_norm_.default, (randn((3, 4), (5,), device=device), norm, 1.0))


def test_opcheck_of_adam(device: torch.device) -> None:
    arguments = adam_arguments(device)
    opcheck(ops.adam_.default, tuple(arguments))
    plain = [*arguments[:4], [], arguments[5], [3], FIELDS, []]
    opcheck(ops.adam_.default, tuple(plain))


def test_opcheck_of_the_table_ops(device: torch.device) -> None:
    table = _C.TensorTable()
    params, grads, exp_avgs, exp_avg_sqs = adam_arguments(device)[:4]
    steps = [scalar(0.0, device) for _ in params]
    states = [*exp_avgs, *exp_avg_sqs]
    opcheck(ops.table_assign.default, (table.address, params, states, steps, [3], [2]))
    opcheck(ops.table_refresh.default, (table.address, grads[1:], [0]))
    opcheck(ops.table_refresh.default, (table.address, grads, []))
    norm = scalar(0.0, device, torch.float64)
    opcheck(ops.table_norm_.default, (table.address, norm, 2.0, None))
    adam = (table.address, params[0], FIELDS, [], norm, 2.0, None, None, 1.0, False)
    opcheck(ops.table_adam_.default, adam)


def test_adam_op_does_what_the_optimizer_does(device: torch.device) -> None:
    params = make_params((3, 4), (40_000,), device=device)
    by_op = [p.detach().clone() for p in params]
    states = [[torch.zeros_like(p) for p in by_op] for _ in range(2)]
    steps = [scalar(0.0, device) for _ in by_op]
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    for step in range(3):
        set_grads(params, seed=step)
        optimizer.step()
        grads = [p.grad for p in params]
        norm = ops.total_norm(grads)
        ops.adam_(by_op, grads, *states, [], steps, [2], FIELDS, [], norm, max_norm=1.0)
    for param, other in zip(params, by_op, strict=True):
        assert_same_bits(param, other, "parameter")
    assert [float(step) for step in steps] == [3.0, 3.0]


def test_adam_op_with_l2_is_adam(device: torch.device) -> None:
    (param,), (grad,) = randn((500,), device=device), randn((500,), device=device, seed=1)
    theirs = param.clone().requires_grad_()
    reference = torch.optim.Adam([theirs], weight_decay=0.1)
    state = [torch.zeros_like(param) for _ in range(2)]
    step = scalar(0.0, device)
    fields = with_fields(weight_decay=0.1, decoupled=0.0)
    for _ in range(3):
        theirs.grad = grad
        reference.step()
        ops.adam_([param], [grad], [state[0]], [state[1]], [], [step], [1], fields, [])
    torch.testing.assert_close(param, theirs.detach())


def step_by_ops(params: list[Tensor], grads: list[Tensor], state: list[Any]) -> Tensor:
    norm = ops.total_norm(grads)
    ops.clip_by_norm_(grads, norm, 1.0)
    ops.adam_(params, grads, *state[:2], [], state[2], [len(params)], FIELDS, [], norm)
    return norm


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_whole(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step_by_ops, fullgraph=True, backend=backend)
    results = []
    for function in (step_by_ops, compiled):
        params, grads = randn((30, 4), (), (5,)), randn((30, 4), (), (5,), seed=1)
        state = [[torch.zeros_like(p) for p in params] for _ in range(2)]
        state.append([torch.tensor(0.0) for _ in params])
        norms = [function(params, grads, state) for _ in range(2)]
        results.append([*norms, *params, *grads, *state[0], *state[1], *state[2]])
    for eager, other in zip(*results, strict=True):
        assert_same_bits(other, eager, backend)


@pytest.mark.slow
def test_optimizer_step_beside_a_compiled_model() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = torch.nn.Linear(6, 3)
    model = torch.compile(plain, backend="aot_eager")
    optimizer = fusedstep.AdamW(model.parameters(), max_norm=1.0)

    @torch.compile(backend="aot_eager")
    def train(x: Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    x = torch.randn(4, 6)
    before = plain(x).square().mean().item()
    for _ in range(3):
        train(x)
    assert plain(x).square().mean().item() < before
    assert {float(s["step"]) for s in optimizer.state.values()} == {3.0}


def test_stale_backward_raises_after_a_step(device: torch.device) -> None:
    params = make_params((4, 4), (4,), device=device)
    optimizer = fusedstep.AdamW(params)
    loss = ((params[0] @ params[1]) ** 2).sum()
    loss.backward(retain_graph=True)
    versions = [p._version for p in params]
    optimizer.step()
    assert [p._version for p in params] == [v + 1 for v in versions]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_versions_of_parameters_without_gradient_stay(device: torch.device) -> None:
    params = make_params((4,), (4,), device=device)
    optimizer = fusedstep.AdamW(params)
    set_grads(params)
    optimizer.step()
    params[0].grad = None
    versions = [p._version for p in params]
    optimizer.step()
    assert [p._version for p in params] == [versions[0], versions[1] + 1]


def test_clip_counts_the_version_of_gradients(device: torch.device) -> None:
    params = make_params((4,), device=device)
    set_grads(params)
    version = params[0].grad._version
    fusedstep.clip_grad_norm_(params, 1.0)
    assert params[0].grad._version > version


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


@pytest.mark.parametrize("missing", [[3], [-1], [0, 0], [1, 0], [0, 1]])
def test_table_op_refuses_wrong_positions_of_missing_gradients(missing: list[int]) -> None:
    table = _C.TensorTable()
    params, grads, exp_avgs, exp_avg_sqs = adam_arguments()[:4]
    steps = [torch.tensor(0.0) for _ in params]
    ops.table_assign(table.address, params, [*exp_avgs, *exp_avg_sqs], steps, [3], [2])
    assert not ops.table_refresh(table.address, grads[:2], missing)
    assert table.num_rows == 0
    with pytest.raises(RuntimeError, match=r"^table_adam_: table must have gradients, got none"):
        ops.table_adam_(table.address, params[0], *_TABLE_OPTIONS)


def test_table_op_refuses_groups_with_other_states() -> None:
    table = _C.TensorTable()
    params, grads, exp_avgs, exp_avg_sqs = adam_arguments()[:4]
    steps = [torch.tensor(0.0) for _ in params]
    ops.table_assign(table.address, params, [*exp_avgs, *exp_avg_sqs], steps, [3], [2])
    assert ops.table_refresh(table.address, grads, [])
    with pytest.raises(RuntimeError, match=r"^table_adam_: groups must have the states that"):
        ops.table_adam_(table.address, params[0], with_fields(amsgrad=1.0), *_TABLE_OPTIONS[1:])
