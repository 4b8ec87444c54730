"""On a GPU: the CPU's bits, no wait, few launches, any stream, any device.

Tests elsewhere that take the `device` fixture run on the GPU too, against the NumPy reference.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fusedstep
from tests.support.cpu_and_gpu import CpuAndGpu
from tests.support.optimizers import Kind, every_kind
from tests.support.reads import LONG, waiting_is_an_error
from tests.support.storage_forms import FORMS, Form, StoredTable, assert_stored_alike
from tests.support.tensors import DTYPES, assert_same_bits, bounded, make_params, name_of, set_grads

pytestmark = pytest.mark.gpu

SHAPES = [(70_001,), (3, 5), (), (0,), (32_768,), (257,), (0, 2)]


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bits_are_those_of_the_cpu(
    dtype: torch.dtype, grad_dtype: torch.dtype, norm_type: float
) -> None:
    both = CpuAndGpu(*SHAPES, dtype=dtype, max_norm=1.0, norm_type=norm_type, amsgrad=True)
    for step in range(3):
        both.set_grads(step, grad_dtype)
        both.step()
        both.check()


@bounded
@given(
    shapes=st.lists(st.lists(st.integers(0, 60), max_size=3).map(tuple), min_size=1, max_size=8),
    dtype=st.sampled_from(DTYPES),
    grad_dtype=st.sampled_from(DTYPES),
    max_norm=st.none() | st.floats(0, 10),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e5, 1e25]),
    lr=st.floats(0, 1),
)
def test_bits_are_those_of_the_cpu_for_any_list(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    max_norm: float | None,
    scale: float,
    lr: float,
) -> None:
    both = CpuAndGpu(*shapes, dtype=dtype, lr=lr, max_norm=max_norm)
    for step in range(2):
        both.set_grads(step, grad_dtype, scale)
        both.step()
    both.check()


@every_kind
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_bits_are_those_of_the_cpu_for_every_form_of_storage(form: Form, kind: Kind) -> None:
    both = [StoredTable(kind, form, *SHAPES, device=device) for device in ("cuda", "cpu")]
    for _ in range(3):
        for stored in both:
            stored.step()
        assert_stored_alike(*both)


def test_norm_of_more_chunks_than_can_run_at_once() -> None:
    tensors = [p.detach() for p in make_params((30_000_000,), *[(1000,)] * 3000)]
    expected = fusedstep.get_total_norm(tensors)
    actual = fusedstep.get_total_norm([t.cuda() for t in tensors])
    assert_same_bits(actual, expected, "norm")


@pytest.mark.parametrize("rounds", [20])
def test_same_bits_every_time(rounds: int) -> None:
    tensors = [p.detach() for p in make_params((5_000_000,), (77,), device="cuda")]
    norms = {float(torch.ops.fusedstep.total_norm(tensors)) for _ in range(rounds)}
    assert len(norms) == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"max_norm": 1.0}, {"nonfinite": "skip"}, {"max_norm": 1.0, "lr": "tensor"}],
    ids=str,
)
def test_step_does_not_wait(options: dict[str, Any]) -> None:
    if "lr" in options:
        options = options | {"lr": torch.tensor(0.01, device="cuda")}
    params = make_params(*SHAPES, device="cuda")
    optimizer = fusedstep.AdamW(params, **options)
    set_grads(params)
    optimizer.grad_scale = torch.tensor(2.0, device="cuda")
    optimizer.found_inf = torch.tensor(0.0, device="cuda")
    others = [torch.ones_like(p) for p in params]
    optimizer.step()  # makes the state
    with waiting_is_an_error():
        for step in range(4):
            optimizer.step()
            for param, other in zip(params, others, strict=True):
                param.grad = other  # moved: the table is sent again
            if step == 2:
                params[1].grad = None
    assert float(optimizer.state[params[0]]["step"]) == 5


def test_clip_and_norm_do_not_wait() -> None:
    params = make_params(*SHAPES, device="cuda")
    set_grads(params)
    fusedstep.clip_grad_norm_(params, 1.0)
    with waiting_is_an_error():
        fusedstep.clip_grad_norm_(params, 1.0)
        fusedstep.get_total_norm([p.grad for p in params])


def test_tables_under_way_are_not_overwritten() -> None:
    """While the GPU is busy, many tables with other addresses are sent, one after the other."""
    both = CpuAndGpu(*SHAPES, max_norm=1.0)
    both.set_grads(0)
    both.step()
    kept: list[Tensor | None] = []
    torch.cuda._sleep(LONG)
    for step in range(1, 30):
        both.set_grads(step)
        if step % 3 == 0:
            both.cpu[1].grad = both.cuda[1].grad = None
        kept += [p.grad for p in both.cuda]  # so that no address comes again
        both.step()
    both.check()


def test_lr_on_the_device_is_read_at_every_step() -> None:
    both = CpuAndGpu(*SHAPES)
    rate = torch.tensor(0.0, device="cuda")
    both.optimizers[1].param_groups[0]["lr"] = rate
    for step in range(4):
        both.set_grads(step)
        rate.fill_(0.1 / (step + 1))
        both.optimizers[0].param_groups[0]["lr"] = float(rate)
        both.step()
        both.check()


@pytest.mark.parametrize("wait_first", [True, False])
def test_side_stream(wait_first: bool) -> None:
    both = CpuAndGpu(*SHAPES, max_norm=1.0)
    side = torch.cuda.Stream()
    for step in range(3):
        both.set_grads(step)
        if wait_first:
            torch.cuda.synchronize()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(LONG // 20)
            for param in both.cuda:  # the step must come after this, on the same stream
                param.grad.mul_(2)
            both.optimizers[1].step()
        torch.cuda.current_stream().wait_stream(side)
        for param in both.cpu:
            param.grad.mul_(2)
        both.optimizers[0].step()
        both.check()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_that_is_not_the_current_one() -> None:
    params = make_params(*SHAPES, device="cuda:1")
    twins = make_params(*SHAPES)
    optimizers = [fusedstep.AdamW(p, max_norm=1.0) for p in (params, twins)]
    with torch.cuda.device(0):
        for step in range(3):
            for one, optimizer in zip((params, twins), optimizers, strict=True):
                set_grads(one, seed=step)
                optimizer.step()
        assert torch.cuda.current_device() == 0
    for param, twin in zip(params, twins, strict=True):
        assert_same_bits(param, twin, "parameter")


def test_parameters_on_the_cpu_and_on_the_gpu_are_clipped_together() -> None:
    mixed = [*make_params((500,), (3, 3)), *make_params((40,), device="cuda", seed=1)]
    on_cpu = [p.detach().cpu().requires_grad_() for p in mixed]
    optimizers = [fusedstep.AdamW(p, lr=0.1, max_norm=1.0) for p in (mixed, on_cpu)]
    for step in range(3):
        for params, optimizer in zip((mixed, on_cpu), optimizers, strict=True):
            set_grads(params, seed=step)
            optimizer.step()
    torch.testing.assert_close(optimizers[0].grad_norm, optimizers[1].grad_norm, check_device=False)
    for param, twin in zip(mixed, on_cpu, strict=True):
        torch.testing.assert_close(param.cpu(), twin)


def work_of(optimizer: fusedstep.AdamW) -> tuple[list[str], list[str]]:
    """Names of the kernels and of the copies that one step puts on the GPU."""
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profiler:
        optimizer.step()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profiler.events() if event.device_type == on_gpu]
    copies = [name for name in names if name.startswith(("Memcpy", "Memset"))]
    return [name for name in names if "kernel" in name and name not in copies], copies


@pytest.mark.parametrize(("combinations", "launches"), [(1, 2), (3, 3)])
def test_launches_of_a_step(combinations: int, launches: int) -> None:
    """One for the norm, one for what is stored as it is computed, one for the rest."""
    params = make_params(*[(1000 + i,) for i in range(300)], device="cuda")
    groups = [{"params": [p], "lr": 1e-3 * i} for i, p in enumerate(params)]
    optimizer = fusedstep.AdamW(groups, max_norm=1.0)
    for i, param in enumerate(params):
        set_grads([param], dtype=DTYPES[i % combinations])
    for _ in range(3):
        optimizer.step()
    work_of(optimizer)  # the profiler's own first use
    kernels, copies = work_of(optimizer)
    assert len(kernels) == launches
    assert copies == []
    params[0].grad = params[0].grad.clone()
    kernels, copies = work_of(optimizer)
    assert len(kernels) == launches
    assert len(copies) == 1, "one address changed: the table is sent once"


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    size = 2**31 + 12_345
    if torch.cuda.mem_get_info()[0] < 13 * size:
        pytest.skip("needs 13 bytes for each of 2^31 elements")
    param = torch.zeros(size, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = fusedstep.AdamW([param], lr=1.0, max_norm=1e9)
    optimizer.step()
    assert float(optimizer.grad_norm) == pytest.approx(math.sqrt(size), rel=1e-6)
    # In pieces: a comparison of the whole would need as much memory again.
    assert all(bool((piece == param[0]).all()) for piece in param.detach().split(2**28))
    assert float(param[0]) == pytest.approx(-1.0, rel=1e-2)
