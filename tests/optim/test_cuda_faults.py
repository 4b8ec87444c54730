"""What the CUDA path does when calls fail or threads and devices meet, run on the host."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import fusedstep
from tests.support.on_host import assert_twins, step_on_cpu, twins
from tests.support.tensors import assert_same_bits, make_params, set_grads

pytestmark = pytest.mark.slow


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
    "call", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync", "cudaLaunchKernelEx"]
)
def test_the_next_step_starts_over_where_a_call_failed(
    on_simt: Any, call: str, captured: bool
) -> None:
    params, optimizers = twins(capturable=True)
    for p in params:
        set_grads(p, seed=0)
    if call in ("cudaMemcpyAsync", "cudaLaunchKernelEx"):  # memory is allocated at the first step
        optimizers[0].step()
        step_on_cpu(optimizers[1])
    if captured:
        on_simt.begin_capture()
        optimizers[0].step()
        on_simt.end_capture()
    change_everything(params, optimizers)
    on_simt.fail_next(call)
    before = [p.detach().clone() for p in params[0]]
    with pytest.raises(RuntimeError, match=r"fusedstep: .* failed: out of memory"):
        optimizers[0].step()
    assert on_simt.last_error() == 0
    for i, (param, value) in enumerate(zip(params[0], before, strict=True)):
        assert_same_bits(param, value, f"parameter {i}")
    for _ in range(2):
        optimizers[0].step()
        step_on_cpu(optimizers[1])
    assert_twins(params, optimizers)


def test_a_rate_whose_copy_failed_is_sent_again(on_simt: Any) -> None:
    params, optimizers = twins()
    for p in params:
        set_grads(p, seed=0)
    optimizers[0].step()
    step_on_cpu(optimizers[1])
    change_rates(optimizers)
    on_simt.fail_next("cudaMemcpyAsync")
    with pytest.raises(RuntimeError, match="sending the tensor table failed"):
        optimizers[0].step()
    optimizers[0].step()
    step_on_cpu(optimizers[1])
    assert_twins(params, optimizers)


def test_page_locked_memory_is_freed_after_its_copy(on_simt: Any) -> None:
    gc.collect()  # what tests before this one left
    optimizer = fusedstep.AdamW(params := make_params((100,)))
    set_grads(params, seed=0)
    on_simt.fail_next("cudaLaunchKernelEx")  # so that nothing has waited for the copy
    with pytest.raises(RuntimeError, match="launching the step pass failed"):
        optimizer.step()
    before = on_simt.allocations()
    del optimizer
    gc.collect()
    assert on_simt.allocations() == before - 2
    assert on_simt.freed_too_early() == 0


def test_default_streams_of_two_devices_do_not_share_a_table(on_simt: Any) -> None:
    memory = [on_simt.borrowed_memory(device) for device in (0, 1, 0, 1)]
    assert memory[:2] == memory[2:]
    assert memory[0] != memory[1]


def test_a_step_leaves_the_capture_of_another_thread_valid(on_simt: Any) -> None:
    params, optimizers = twins(max_norm=1.0)
    for p in params:
        set_grads(p, seed=0)
    before = on_simt.copies()
    on_simt.begin_capture_elsewhere()
    for _ in range(3):
        change_rates(optimizers)  # each sends, so staging memory is asked whether it is free
        optimizers[0].step()
        step_on_cpu(optimizers[1])
    assert on_simt.copies() == before + 3
    assert on_simt.end_capture_elsewhere()
    assert_twins(params, optimizers)


def test_staging_is_taken_again_though_another_thread_captures(on_simt: Any) -> None:
    params, (optimizer, _) = twins()
    set_grads(params[0], seed=0)
    optimizer.step()
    before = on_simt.allocations()
    on_simt.begin_capture_elsewhere()
    for _ in range(3):
        change_rates([optimizer])
        optimizer.step()
    assert on_simt.end_capture_elsewhere()
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
