"""The CUDA path from op to kernel, run on the host: device table, uploads, graph capture, bits."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedstep
from tests.support.on_host import SHAPES, assert_twins, on_cpu, step_on_cpu, twins
from tests.support.optimizers import OPTIMIZERS, Kind, every_kind
from tests.support.pages import bytes_written, mapped
from tests.support.storage_forms import FORMS, Form, StoredTable, assert_stored_alike
from tests.support.tensors import assert_same_bits, make_params, set_grads

pytestmark = pytest.mark.slow

ops = torch.ops.fusedstep

MANY = 250  # tensors whose table is too large for the arguments of a few kernels
STORED_SHAPES = ((3000,), (2, 65), (5,), (0,), ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_steps_have_the_bits_of_the_cpu(on_simt: Any, dtype: torch.dtype) -> None:
    params, optimizers = twins(dtype, max_norm=0.5, amsgrad=True)
    for seed in range(3):
        on_simt.seed(seed)
        for p in params:
            set_grads(p, seed=seed)
        optimizers[0].step()
        step_on_cpu(optimizers[1])
        assert_same_bits(optimizers[0].grad_norm, optimizers[1].grad_norm, "norm")
    assert_twins(params, optimizers)


@every_kind
def test_every_rule_has_the_bits_of_the_cpu(on_simt: Any, kind: Kind) -> None:
    params, optimizers = twins(torch.bfloat16, kind.ours, max_norm=0.5)
    for seed in range(2):
        for p in params:
            set_grads(p, seed=seed)
        optimizers[0].step()
        step_on_cpu(optimizers[1])
    assert_twins(params, optimizers)


@pytest.mark.parametrize(
    "mode",
    [
        {"state_dtype": "int8", "master": "remainder", "ema_decay": 0.9},
        {"state_dtype": "int8", "master": "correction", "ema_decay": 0.9, "seed": 2**40 + 3},
        {"state_dtype": torch.bfloat16, "stochastic_rounding": True, "seed": 2**40 + 3},
    ],
    ids=lambda mode: " ".join(mode),
)
def test_modes_have_the_bits_of_the_cpu(on_simt: Any, mode: dict[str, Any]) -> None:
    params, optimizers = twins(torch.bfloat16, max_norm=0.5, **mode)
    for seed in range(2):
        for p in params:
            set_grads(p, seed=seed)
        optimizers[0].step()
        step_on_cpu(optimizers[1])
    assert_twins(params, optimizers)


@pytest.mark.parametrize("kind", [OPTIMIZERS[0], OPTIMIZERS[2]], ids=lambda kind: kind.name)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_of_storage_has_the_bits_of_the_cpu(
    on_simt: Any, form: Form, kind: Kind
) -> None:
    ours, twin = (StoredTable(kind, form, *STORED_SHAPES) for _ in range(2))
    for _ in range(3):
        ours.step()
        with on_cpu():
            twin.step()
    assert_stored_alike(ours, twin)


def test_replays_draw_fresh_random_numbers(on_simt: Any) -> None:
    """The step, one of their keys, is read on the device."""
    form = Form(torch.bfloat16, torch.bfloat16, torch.bfloat16, stochastic=True)
    ours, twin = (StoredTable(OPTIMIZERS[0], form, *STORED_SHAPES) for _ in range(2))
    on_simt.begin_capture()
    ours.step()
    on_simt.end_capture()
    for _ in range(3):
        on_simt.replay()
        with on_cpu():
            twin.step()
        assert_stored_alike(ours, twin)
    assert ours.steps_done() == {3.0}


def test_the_table_is_sent_only_when_something_changed(on_simt: Any) -> None:
    """By launches, whose arguments so few bytes are, beside the norm pass and the step pass."""
    params, (optimizer, twin) = twins(max_norm=1.0)
    for p in params:
        set_grads(p, seed=0)
    sent, copies, before = [], on_simt.copies(), on_simt.launches()

    def step() -> None:
        optimizer.step()
        step_on_cpu(twin)
        sent.append(on_simt.launches() - before - 2 * (len(sent) + 1))

    step()
    step()  # nothing changed
    for o in (optimizer, twin):
        o.param_groups[1]["lr"] = 3e-3
    step()  # a rate changed
    kept = [p.grad for p in params[0]]  # held, so that the new gradients lie elsewhere
    for p in params:
        set_grads(p, seed=1)
    step()  # gradients moved
    for p in params:
        p[4].grad = None
    step()  # a gradient is missing: a new layout
    step()
    assert sent == [1, 1, 2, 3, 4, 4]
    assert on_simt.copies() == copies
    assert len(kept) == len(SHAPES)
    assert_twins(params, [optimizer, twin])


def test_staging_is_not_reused_before_its_copy_is_done(on_simt: Any) -> None:
    """Two uploads before any kernel runs: the second must not overwrite the first one's source."""
    first, second = (torch.randn(1000, generator=torch.manual_seed(i)) for i in (0, 1))
    before = on_simt.copies()
    norms = [ops.total_norm([x] * MANY) for x in (first, second, first)]
    assert on_simt.copies() == before + 3
    with on_cpu():
        assert_same_bits(norms[0], ops.total_norm([first] * MANY), "first")
        assert_same_bits(norms[1], ops.total_norm([second] * MANY), "second")
    assert_same_bits(norms[2], norms[0], "again")


def test_memory_of_list_ops_goes_back(on_simt: Any) -> None:
    """To torch's allocator; page-locked memory to a pool of ours."""
    tensors = make_params((100,), (3, 5)) * MANY
    ops.total_norm(tensors)
    gc.collect()  # what tests before this one left
    before, cached = on_simt.allocations(), on_simt.cached()
    for _ in range(5):
        ops.total_norm(tensors)
    assert on_simt.allocations() == before
    assert on_simt.cached() == cached


def test_rates_of_steps_in_flight_take_no_memory(on_simt: Any) -> None:
    """However far the GPU lags behind: they are arguments of a kernel, which CUDA keeps."""
    params, (optimizer, twin) = twins()
    for p in params:
        set_grads(p, seed=0)
    optimizer.step()
    step_on_cpu(twin)
    gc.collect()  # what tests before this one left
    before = on_simt.allocations(), on_simt.cached(), on_simt.copies()
    on_simt.hold()
    for _ in range(5):
        for o in (optimizer, twin):
            o.param_groups[0]["lr"] *= 0.5
        optimizer.step()
        step_on_cpu(twin)
    assert (on_simt.allocations(), on_simt.cached(), on_simt.copies()) == before
    on_simt.finish()
    assert_twins(params, [optimizer, twin])


def test_eager_steps_take_no_memory_beside_torchs_allocator(on_simt: Any) -> None:
    """Which may hold all that the GPU has: then CUDA gives none."""
    params, (optimizer, twin) = twins(max_norm=1.0)
    gc.collect()  # what tests before this one left
    before = on_simt.cached()
    for seed in range(3):
        for p in params:
            set_grads(p, seed=seed)
        params[0][seed].grad = params[1][seed].grad = None  # a new layout
        on_simt.fail_next("cudaMalloc")
        optimizer.step()
        step_on_cpu(twin)
        assert on_simt.cached() == before + 1
    assert_twins(params, [optimizer, twin])
    on_simt.fail_next("")  # nobody asked CUDA


def test_memory_is_freed_on_the_stream_that_uses_it(on_simt: Any) -> None:
    """torch hands it to the next on its own stream at once, however busy another one is."""
    params, (optimizer, twin) = twins(max_norm=1.0)
    gc.collect()  # what tests before this one left
    others = on_simt.cached_on_current()
    for p in params:
        set_grads(p, seed=0)
    for side in (False, True, True, False):
        on_simt.use_side_stream(side)
        optimizer.step()
        step_on_cpu(twin)
        assert on_simt.cached_on_current() == (1 if side else others + 1)
    on_simt.finish()
    on_simt.use_side_stream(False)
    assert_twins(params, [optimizer, twin])


def test_a_captured_graph_replays_with_new_gradients_and_survives_eager_steps(on_simt: Any) -> None:
    params, (optimizer, twin) = twins(max_norm=1.0, capturable=True)
    for p in params:
        set_grads(p, seed=0)
    optimizer.step()
    step_on_cpu(twin)

    on_simt.begin_capture()
    optimizer.step()
    assert len(on_simt.end_capture()) == 2  # the norm pass and the step pass
    static = [p.grad for p in params[0]]
    norm = optimizer._internals.norm  # held here; on a GPU the graph's memory pool keeps it

    for seed in (1, 2):
        for p in params:
            fresh = make_params(*SHAPES, seed=10 + seed)
            for target, value in zip(p, fresh, strict=True):
                target.grad.copy_(value.detach())
        on_simt.replay()
        step_on_cpu(twin)
        assert_same_bits(optimizer.grad_norm, twin.grad_norm, "norm")
    assert_twins(params, [optimizer, twin])

    # An eager step with other gradients and another rate must leave the graph's table alone.
    for o in (optimizer, twin):
        o.param_groups[0]["lr"] = 0.1
    for p in params:
        set_grads(p, seed=5)
    optimizer.step()
    step_on_cpu(twin)
    assert_twins(params, [optimizer, twin])

    for o in (optimizer, twin):
        o.param_groups[0]["lr"] = 1e-3  # the graph has the rate of its capture
    for target, value in zip(params[1], static, strict=True):
        target.grad = value.clone()
    on_simt.replay()
    step_on_cpu(twin)
    assert_twins(params, [optimizer, twin])
    assert_same_bits(norm.float(), twin.grad_norm, "norm")


def test_the_first_step_may_be_captured(on_simt: Any) -> None:
    params, (optimizer, twin) = twins(max_norm=1.0, capturable=True)
    for p in params:
        set_grads(p, seed=0)
    on_simt.begin_capture()
    optimizer.step()
    assert len(on_simt.end_capture()) == 2
    on_simt.replay()
    step_on_cpu(twin)
    assert_twins(params, [optimizer, twin])


def test_a_launch_for_each_combination_of_dtypes(on_simt: Any) -> None:
    """The norm pass reads all chunks; the step passes begin with the dtypes that it read last."""
    params = [*make_params((300,), (7,)), *make_params((64,), (5, 5), (3,), dtype=torch.bfloat16)]
    optimizer = fusedstep.AdamW(params, max_norm=1.0, capturable=True)
    set_grads(params, seed=0)
    on_simt.begin_capture()
    optimizer.step()
    norm_pass, *step_passes = on_simt.end_capture()
    assert norm_pass <= 5  # blocks may take several chunks
    assert step_passes == [2, 3]  # a block a chunk: float32, then bfloat16


def test_a_clip_of_plain_tensors_is_two_launches_and_one_that_sends(on_simt: Any) -> None:
    params, twin = (make_params(*SHAPES, seed=1) for _ in range(2))
    for some in (params, twin):
        set_grads(some)
    before = on_simt.launches()
    norm = fusedstep.clip_grad_norm_(params, 0.25)
    assert on_simt.launches() - before == 3
    after = fusedstep.get_total_norm([p.grad for p in params])
    assert on_simt.launches() - before == 5
    on_simt.finish()
    assert float(after) == pytest.approx(0.25, rel=1e-5)
    with on_cpu():
        assert_same_bits(norm, fusedstep.clip_grad_norm_(twin, 0.25), "norm")
    for i, (a, b) in enumerate(zip(params, twin, strict=True)):
        assert_same_bits(a.grad, b.grad, f"gradient {i}")


def test_a_clip_by_one_writes_nothing(on_simt: Any, tmp_path: Path) -> None:
    (param,) = make_params((70_000,))
    path = tmp_path / "gradient"
    param.grad = mapped(path, torch.randn(70_000, generator=torch.manual_seed(0)))
    norm = fusedstep.clip_grad_norm_(param, 1e9)
    on_simt.finish()
    assert bytes_written(path) == 0
    fusedstep.clip_grad_norm_(param, float(norm) * 0.9)
    on_simt.finish()
    assert bytes_written(path) >= param.grad.nbytes


def test_the_clip_has_the_bits_of_the_cpu(on_simt: Any) -> None:
    ours, twin = (make_params(*SHAPES, seed=1) for _ in range(2))
    tensors = [[p.detach() for p in params] for params in (ours, twin)]
    ops.clip_by_norm_(tensors[0], ops.total_norm(tensors[0]), 0.25)
    with on_cpu():
        ops.clip_by_norm_(tensors[1], ops.total_norm(tensors[1]), 0.25)
    for i, (a, b) in enumerate(zip(*tensors, strict=True)):
        assert_same_bits(a, b, f"tensor {i}")


def test_the_qk_clip_has_the_bits_of_the_cpu(on_simt: Any) -> None:
    """One launch for weights of every dtype, after one that sends the table."""
    shapes = ((64, 1030), (8,), (16, 3, 5), (0, 4))
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    ours, twin = (
        [p.detach().to(dtype) for dtype in dtypes for p in make_params(*shapes, seed=1)]
        for _ in range(2)
    )
    logits = [torch.tensor([30.0, 3.0, float("inf"), 11.0])] * len(ours)
    before = on_simt.launches()
    fusedstep.qk_clip_(ours, logits, 5.0)
    assert on_simt.launches() - before == 2
    on_simt.finish()
    with on_cpu():
        fusedstep.qk_clip_(twin, logits, 5.0)
    for i, (a, b) in enumerate(zip(ours, twin, strict=True)):
        assert_same_bits(a, b, f"weight {i}")


def test_the_qk_clip_writes_nothing_but_heads_that_are_scaled(on_simt: Any, tmp_path: Path) -> None:
    path = tmp_path / "weight"
    values = torch.randn(4 * 64 * 300, generator=torch.Generator().manual_seed(0))
    weight = mapped(path, values).view(4 * 64, 300)
    logits = torch.full((4,), 5.0)
    fusedstep.qk_clip_(weight, logits, 5.0)
    on_simt.finish()
    assert bytes_written(path) == 0
    logits[2] = 20.0
    fusedstep.qk_clip_(weight, logits, 5.0)
    on_simt.finish()
    assert weight.nbytes // 4 <= bytes_written(path) <= weight.nbytes // 4 + 2 * 4096
    assert_same_bits(weight[128:192].flatten(), values[128 * 300 : 192 * 300] * 0.5, "scaled")


def test_a_captured_qk_clip_decides_at_every_replay(on_simt: Any) -> None:
    weight, logits = torch.ones(8, 5), torch.ones(4)
    on_simt.begin_capture()
    fusedstep.qk_clip_(weight, logits, 4.0)
    assert on_simt.end_capture() == [1]
    on_simt.replay()
    on_simt.finish()
    assert (weight == 1).all()
    logits[1] = 16.0
    on_simt.replay()
    on_simt.finish()
    assert weight[:, 0].tolist() == [1, 1, 0.5, 0.5, 1, 1, 1, 1]
