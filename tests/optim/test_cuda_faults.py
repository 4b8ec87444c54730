"""What the CUDA path does when calls fail or threads and devices meet, run on the host."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import fusedstep
from tests.support.on_host import assert_twins, step_on_cpu, twins
from tests.support.tensors import assert_same_bits, set_grads

pytestmark = pytest.mark.slow

MANY = 250  # tensors whose table is too large for the arguments of a few kernels


def change_everything(params: list[list[torch.Tensor]], optimizers: list[fusedstep.AdamW]) -> None:
    """New gradients and rates; one gradient is missing, so that the layout changes too."""
    for group in params:
        set_grads(group, seed=7)
        group[4].grad = None
    change_rates(optimizers)


def change_rates(optimizers: list[fusedstep.AdamW]) -> None:
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] *= 3


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("cached_alloc", "allocating the tensor table failed: torch has no memory for it"),
        ("cudaLaunchKernelEx", "sending the tensor table failed: out of memory"),
    ],
)
def test_the_next_step_starts_over_where_a_call_failed(
    on_simt: Any, call: str, message: str, captured: bool
) -> None:
    params, optimizers = twins(capturable=True)
    for p in params:
        set_grads(p, seed=0)
    optimizers[0].step()
    step_on_cpu(optimizers[1])
    if captured:
        on_simt.begin_capture()
        optimizers[0].step()
        on_simt.end_capture()
    change_everything(params, optimizers)
    on_simt.fail_next(call)
    before = [p.detach().clone() for p in params[0]]
    with pytest.raises(RuntimeError, match=f"fusedstep: {message}"):
        optimizers[0].step()
    assert on_simt.last_error() == 0
    for i, (param, value) in enumerate(zip(params[0], before, strict=True)):
        assert_same_bits(param, value, f"parameter {i}")
    for _ in range(2):
        optimizers[0].step()
        step_on_cpu(optimizers[1])
    assert_twins(params, optimizers)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMemcpyAsync"])
def test_a_capture_that_failed_can_be_made_again(on_simt: Any, call: str) -> None:
    params, optimizers = twins(capturable=True)
    for p in params:
        set_grads(p, seed=0)
    on_simt.begin_capture()
    on_simt.fail_next(call)
    with pytest.raises(RuntimeError, match="the tensor table failed: out of memory"):
        optimizers[0].step()
    assert on_simt.end_capture() == []
    on_simt.begin_capture()
    optimizers[0].step()
    on_simt.end_capture()
    for _ in range(2):
        on_simt.replay()
        step_on_cpu(optimizers[1])
    assert_twins(params, optimizers)


@pytest.mark.parametrize("call", ["cudaHostAlloc", "cudaMemcpyAsync"])
def test_a_table_whose_copy_failed_is_sent_again(on_simt: Any, call: str) -> None:
    params, twin = ([torch.ones(3, requires_grad=True) for _ in range(MANY)] for _ in range(2))
    optimizers = [fusedstep.SGD(p) for p in (params, twin)]
    for p in (*params, *twin):
        p.grad = torch.ones(3)
    on_simt.fail_next(call)
    with pytest.raises(RuntimeError, match="failed: out of memory"):
        optimizers[0].step()
    optimizers[0].step()
    step_on_cpu(optimizers[1])
    assert_same_bits(torch.stack(params), torch.stack(twin), "parameters")


def test_a_rate_that_was_not_sent_is_sent_again(on_simt: Any) -> None:
    params, optimizers = twins()
    for p in params:
        set_grads(p, seed=0)
    optimizers[0].step()
    step_on_cpu(optimizers[1])
    change_rates(optimizers)
    on_simt.fail_next("cudaLaunchKernelEx")
    with pytest.raises(RuntimeError, match="sending the tensor table failed"):
        optimizers[0].step()
    optimizers[0].step()
    step_on_cpu(optimizers[1])
    assert_twins(params, optimizers)


def test_page_locked_memory_is_freed_after_its_copy(on_simt: Any) -> None:
    gc.collect()  # what tests before this one left
    allocations, cached = on_simt.allocations(), on_simt.cached()
    optimizer = fusedstep.SGD(params := [torch.ones(1, requires_grad=True) for _ in range(MANY)])
    for p in params:
        p.grad = torch.ones(1)
    on_simt.fail_next("cudaLaunchKernelEx")  # so that nothing has waited for the copy
    with pytest.raises(RuntimeError, match="launching the step pass failed"):
        optimizer.step()
    assert on_simt.allocations() == allocations + 1
    assert on_simt.cached() == cached + 1
    del optimizer
    gc.collect()
    assert on_simt.allocations() == allocations
    assert on_simt.cached() == cached
    assert on_simt.freed_too_early() == 0


def test_default_streams_of_two_devices_do_not_share_a_table(on_simt: Any) -> None:
    tables = [on_simt.borrowed_table(device) for device in (0, 1, 0, 1)]
    assert tables[:2] == tables[2:]
    assert tables[0] != tables[1]


def test_a_step_leaves_the_capture_of_another_thread_valid(on_simt: Any) -> None:
    params, optimizers = twins(max_norm=1.0)
    for p in params:
        set_grads(p, seed=0)
    on_simt.begin_capture_elsewhere()
    for _ in range(3):
        change_rates(optimizers)
        optimizers[0].step()
        step_on_cpu(optimizers[1])
    assert on_simt.end_capture_elsewhere()
    assert_twins(params, optimizers)


def test_staging_is_taken_again_though_another_thread_captures(on_simt: Any) -> None:
    """It is asked whether it is free, which a capture forbids to every thread."""
    tensors = [torch.ones(3)] * MANY
    torch.ops.fusedstep.total_norm(tensors)
    before, copies = on_simt.allocations(), on_simt.copies()
    on_simt.begin_capture_elsewhere()
    for _ in range(3):
        torch.ops.fusedstep.total_norm(tensors)
    assert on_simt.end_capture_elsewhere()
    assert on_simt.copies() == copies + 3
    assert on_simt.allocations() == before


def test_a_capture_leaves_the_table_of_steps_in_flight(on_simt: Any) -> None:
    """The captured step's table is sent past the stream, while an eager step has yet to run."""
    params, optimizers = twins(max_norm=1.0, capturable=True)
    for p in params:
        set_grads(p, seed=0)
    on_simt.hold()
    optimizers[0].step()
    norm = optimizers[0]._internals.norm  # held here; on a GPU the allocator keeps it
    change_rates(optimizers[:1])
    on_simt.begin_capture()
    optimizers[0].step()
    on_simt.end_capture()
    on_simt.finish()
    step_on_cpu(optimizers[1])
    assert_twins(params, optimizers)
    assert_same_bits(norm, optimizers[1]._internals.norm, "norm")

    change_rates(optimizers[1:])
    on_simt.replay()
    step_on_cpu(optimizers[1])
    assert_twins(params, optimizers)
