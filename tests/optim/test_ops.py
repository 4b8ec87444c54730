"""The ops themselves: schemas, fakes, torch.compile, version counters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import fusedstep
from fusedstep import _C
from tests.support.op_arguments import (
    PLAN,
    UNCLIPPED,
    VALUES,
    arrays_of,
    fresh_arrays,
    randn,
    scalar,
    step_arguments,
    table_arguments,
    values_of,
)
from tests.support.tensors import assert_same_bits, make_params, set_grads

ops = torch.ops.fusedstep


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_opcheck_of_total_norm(norm_type: float, device: torch.device) -> None:
    tensors = randn((3, 4), (0,), (70_000,), device=device)
    opcheck(ops.total_norm.default, (tensors, norm_type))
    opcheck(ops.total_norm.default, (tensors, norm_type, scalar(2.0, device)))


def test_opcheck_of_clip_by_norm(device: torch.device) -> None:
    norm = scalar(3.0, device, torch.float64)
    opcheck(ops.clip_by_norm_.default, (randn((3, 4), (5,), device=device), norm, 1.0))


def test_opcheck_of_find_overlap(device: torch.device) -> None:
    tensors = randn((3, 4), (0,), (5,), device=device)
    opcheck(ops.find_overlap.default, (tensors,))


def test_opcheck_of_step(device: torch.device) -> None:
    opcheck(ops.step_.default, tuple(step_arguments(device)))
    params, grads = randn((3, 4), (5,), device=device), randn((3, 4), (5,), device=device, seed=1)
    plain = arrays_of(*fresh_arrays(params))
    opcheck(ops.step_.default, ("adam", params, grads, *plain, [2], VALUES, 0, [], []))


def test_opcheck_of_the_table_ops(device: torch.device) -> None:
    table = _C.TensorTable()
    params, grads, assigned = table_arguments(device)
    opcheck(ops.table_assign.default, (table.address, params, *assigned))
    opcheck(ops.table_refresh.default, (table.address, grads[1:], [0]))
    opcheck(ops.table_refresh.default, (table.address, grads, []))
    # opcheck passes copies, whose memory is free by now.
    ops.table_assign(table.address, params, *assigned)
    assert ops.table_refresh(table.address, grads, [])
    norm = scalar(0.0, device, torch.float64)
    opcheck(ops.table_norm_.default, (table.address, norm, 2.0, None))
    opcheck(ops.table_step_.default, (table.address, PLAN.address, params[0], *UNCLIPPED))
    plan = _C.StepPlan("adam", VALUES, 0, [], 1.0, False)
    clipped = ([], norm, 2.0, None, None)
    opcheck(ops.table_step_.default, (table.address, plan.address, params[0], *clipped))


def test_step_op_does_what_the_optimizer_does(device: torch.device) -> None:
    params = make_params((3, 4), (40_000,), device=device)
    by_op = [p.detach().clone() for p in params]
    of_each = fresh_arrays(by_op)
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    for step in range(3):
        set_grads(params, seed=step)
        optimizer.step()
        grads = [p.grad for p in params]
        norm = ops.total_norm(grads)
        arrays = arrays_of(*of_each)
        ops.step_("adam", by_op, grads, *arrays, [2], VALUES, 0, [], [], norm, max_norm=1.0)
    for param, other in zip(params, by_op, strict=True):
        assert_same_bits(param, other, "parameter")
    assert [float(step) for *_, step in of_each] == [3.0, 3.0]


def test_step_op_with_l2_is_adam(device: torch.device) -> None:
    (param,), (grad,) = randn((500,), device=device), randn((500,), device=device, seed=1)
    theirs = param.clone().requires_grad_()
    reference = torch.optim.Adam([theirs], weight_decay=0.1)
    arrays = arrays_of(*fresh_arrays([param]))
    values = values_of({"weight_decay": 0.1, "decoupled": 0.0})
    for _ in range(3):
        theirs.grad = grad
        reference.step()
        ops.step_("adam", [param], [grad], *arrays, [1], values, 0, [], [])
    torch.testing.assert_close(param, theirs.detach())


def step_by_ops(params: list[Tensor], grads: list[Tensor], of_each: list[list[Tensor]]) -> Tensor:
    norm = ops.total_norm(grads)
    ops.clip_by_norm_(grads, norm, 1.0)
    ops.step_("adam", params, grads, *arrays_of(*of_each), [len(params)], VALUES, 0, [], [], norm)
    return norm


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_whole(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step_by_ops, fullgraph=True, backend=backend)
    results = []
    for function in (step_by_ops, compiled):
        params, grads = randn((30, 4), (), (5,)), randn((30, 4), (), (5,), seed=1)
        of_each = fresh_arrays(params)
        norms = [function(params, grads, of_each) for _ in range(2)]
        results.append([*norms, *params, *grads, *(a for arrays in of_each for a in arrays)])
    for eager, other in zip(*results, strict=True):
        assert_same_bits(other, eager, backend)


@pytest.mark.slow
def test_clip_within_a_compiled_function() -> None:
    torch._dynamo.reset()
    params = make_params((4, 3), (4, 3))

    @torch.compile(backend="aot_eager")
    def clip() -> Tensor:
        return fusedstep.clip_grad_norm_(params, 1.0) * 2

    for _ in range(2):
        grads = torch.ones(4, 6)
        for param, grad in zip(params, grads.chunk(2, dim=-1), strict=True):
            param.grad = grad  # views of one tensor, which a graph could not write
        assert float(clip()) == pytest.approx(2 * 24**0.5, rel=1e-6)
        torch.testing.assert_close(grads, torch.full((4, 6), 24**-0.5))


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
