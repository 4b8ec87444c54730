"""The CUDA path from op to kernel, run on the host: device table, uploads, graph capture, bits.

csrc/cuda and kernels/cuda are compiled as they are against the SIMT harness (tests/simt), whose
copies are late and whose allocations obey the rules of graph capture.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_bits, make_params, set_grads
from torch.utils.cpp_extension import include_paths, library_paths

import fusedstep

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("csrc/cuda/device_table.cpp", "csrc/tensor_table.cpp", "tests/simt/torch/ops.cpp")
GLOBS = ("kernels/cuda/*.cu", "tests/simt/src/*.cpp")
# As in CMakeLists.txt; -Bsymbolic makes the module's own stand-ins for torch's CUDA calls count.
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-DFUSEDSTEP_SIMT", "-w"]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA"]
SHAPES = ((70, 300), (), (0, 3), (5,), (33000,), (16, 16))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The ops of tests/simt/torch/ops.cpp."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler on PATH")
    folder = tmp_path_factory.mktemp("simt")
    includes = [ROOT / "tests" / "simt" / "include", ROOT, *include_paths("cpu")]
    files = [ROOT / name for name in SOURCES]
    files += sorted(path for pattern in GLOBS for path in ROOT.glob(pattern))
    objects = []
    for source in files:
        objects.append(folder / f"{source.parent.name}_{source.stem}.o")
        command = [compiler, *FLAGS, *(f"-I{path}" for path in includes)]
        subprocess.run([*command, "-x", "c++", "-c", source, "-o", objects[-1]], check=True)
    library = folder / "simt.so"
    links = [f"-L{path}" for path in library_paths("cpu")]
    command = [compiler, "-shared", "-Wl,-Bsymbolic", *objects, "-o", library, *links]
    subprocess.run([*command, "-ltorch_cpu"], check=True)
    torch.ops.load_library(str(library))
    return torch.ops.fusedstep_simt


@pytest.fixture
def on_simt(simt: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes fusedstep.AdamW run the CUDA path; the ops are also returned."""
    simt.seed(1)
    monkeypatch.setattr(fusedstep.AdamW, "_table_op", simt.table_adam_.default)
    return simt


def twins(dtype: torch.dtype = torch.float32, **options: Any):
    """Two optimizers over equal parameters: for the CUDA path and for the CPU's."""
    params = [make_params(*SHAPES, dtype=dtype, seed=3) for _ in range(2)]
    groups = [
        [{"params": p[:3]}, {"params": p[3:], "lr": 1e-2, "weight_decay": 0.5}] for p in params
    ]
    return params, [fusedstep.AdamW(g, **options) for g in groups]


def step_on_cpu(optimizer: fusedstep.AdamW) -> None:
    with pytest.MonkeyPatch.context() as patch:
        op = torch.ops.fusedstep.table_adam_.default
        patch.setattr(fusedstep.AdamW, "_table_op", op)
        optimizer.step()


def assert_twins(params: list[list[torch.Tensor]], optimizers: list[fusedstep.AdamW]) -> None:
    for i, (a, b) in enumerate(zip(*params, strict=True)):
        assert_same_bits(a, b, f"parameter {i}")
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (a, b), strict=True)]
        for name in states[1]:
            assert_same_bits(states[0][name], states[1][name], f"{name} of parameter {i}")


def address_of(optimizer: fusedstep.AdamW) -> int:
    return next(iter(optimizer._plans.values())).table.address


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


def test_the_table_is_sent_only_when_something_changed(on_simt: Any) -> None:
    params, (optimizer, twin) = twins(max_norm=1.0)
    for p in params:
        set_grads(p, seed=0)
    sent = []

    def step() -> None:
        optimizer.step()
        step_on_cpu(twin)
        sent.append(on_simt.uploads(address_of(optimizer)))

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
    assert len(kept) == len(SHAPES)
    assert_twins(params, [optimizer, twin])


def test_staging_is_not_reused_before_its_copy_is_done(on_simt: Any) -> None:
    """Two uploads before any kernel runs: the second must not overwrite the first one's source."""
    first, second = (torch.randn(1000, generator=torch.manual_seed(i)) for i in (0, 1))
    norms = [on_simt.total_norm([x], 2.0, None) for x in (first, second, first)]
    assert_same_bits(norms[0], torch.ops.fusedstep.total_norm([first]), "first")
    assert_same_bits(norms[1], torch.ops.fusedstep.total_norm([second]), "second")
    assert_same_bits(norms[2], norms[0], "again")


def test_memory_of_list_ops_goes_back_to_a_pool(on_simt: Any) -> None:
    tensors = make_params((100,), (3, 5))
    on_simt.total_norm(tensors, 2.0, None)
    before = on_simt.allocations()
    for _ in range(5):
        on_simt.total_norm(tensors, 2.0, None)
    assert on_simt.allocations() == before


def test_a_captured_graph_replays_with_new_gradients_and_survives_eager_steps(on_simt: Any) -> None:
    params, (optimizer, twin) = twins(max_norm=1.0, capturable=True)
    for p in params:
        set_grads(p, seed=0)
    optimizer.step()
    step_on_cpu(twin)

    on_simt.begin_capture()
    optimizer.step()
    assert on_simt.end_capture() == 2  # the norm pass and the step pass
    static = [p.grad for p in params[0]]
    norm = optimizer._norm  # held here; on a GPU the graph's memory pool keeps it

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
    assert on_simt.end_capture() == 2
    on_simt.replay()
    step_on_cpu(twin)
    assert_twins(params, [optimizer, twin])


def test_a_launch_for_each_combination_of_dtypes(on_simt: Any) -> None:
    params = [*make_params((300,), (7,)), *make_params((64,), (5, 5), dtype=torch.bfloat16)]
    optimizer = fusedstep.AdamW(params, max_norm=1.0, capturable=True)
    set_grads(params, seed=0)
    on_simt.begin_capture()
    optimizer.step()
    assert on_simt.end_capture() == 3  # one norm pass; float32 and bfloat16 step passes


def test_the_clip_has_the_bits_of_the_cpu(on_simt: Any) -> None:
    ours, twin = (make_params(*SHAPES, seed=1) for _ in range(2))
    tensors = [[p.detach() for p in params] for params in (ours, twin)]
    norm = on_simt.total_norm(tensors[0], 2.0, None)
    on_simt.clip_by_norm_(tensors[0], norm, 0.25)
    torch.ops.fusedstep.clip_by_norm_(tensors[1], torch.ops.fusedstep.total_norm(tensors[1]), 0.25)
    for i, (a, b) in enumerate(zip(*tensors, strict=True)):
        assert_same_bits(a, b, f"tensor {i}")
