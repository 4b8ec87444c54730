"""The CUDA ops compiled for the host: their build, as fixtures, and what their tests share.

csrc/cuda and the kernels are compiled as they are against the SIMT harness (tests/simt), whose
copies are late and whose allocations obey the rules of graph capture.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

import fusedstep
from fusedstep.linalg import decompositions
from fusedstep.optim import step as step_module
from fusedstep.optim.optimizer import FusedOptimizer
from python.buildtools.flags import CXX_NUMERICS, STANDARD
from python.buildtools.minimum_torch import TORCH_TARGET_VERSION
from python.buildtools.rules import write_sources
from tests.support.tensors import assert_same_bits, make_params

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "csrc/cuda/borrowed_table.cpp",
    "csrc/cuda/cuda_cholesky.cpp",
    "csrc/cuda/cuda_eigh.cpp",
    "csrc/cuda/cuda_svd.cpp",
    "csrc/cuda/device_table.cpp",
    "csrc/cuda/memory.cpp",
    "csrc/cuda/solver_handles.cpp",
    "csrc/tensor_table.cpp",
    "tests/simt/torch/ops.cpp",
    "tests/simt/torch/solvers.cpp",
)
GLOBS = ("kernels/*/*.cu", "tests/simt/src/*.cpp")
# -Bsymbolic makes the module's own stand-ins for torch's CUDA calls count.
FLAGS = [*STANDARD, *CXX_NUMERICS, "-O1", "-fPIC", "-DFUSEDSTEP_SIMT", "-w"]
FLAGS += [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-DUSE_CUDA"]
SHAPES = ((70, 300), (), (0, 3), (5,), (33000,), (16, 16))


@pytest.fixture(scope="session")
def simt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The ops of tests/simt/torch/ops.cpp."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler on PATH")
    folder = tmp_path_factory.mktemp("simt")
    includes = [ROOT / "tests" / "simt" / "include", ROOT, *include_paths("cpu")]
    files = [ROOT / name for name in SOURCES]
    files += sorted(path for pattern in GLOBS for path in ROOT.glob(pattern))
    files += write_sources("cuda", folder / "rules")
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
    """Makes every optimizer of fusedstep run the CUDA path; the ops are also returned."""
    simt.seed(1)
    simt.finish()
    simt.fail_next("")
    monkeypatch.setattr(step_module, "_STEP", simt.table_step_.default)
    return simt


@pytest.fixture
def solver_ops(on_simt: Any) -> Any:
    """The ops, whose stand-ins for cuBLAS and cuSOLVER are there and have no matrix fail."""
    on_simt.gives_up(-1)
    on_simt.libraries_missing(False)
    return on_simt


@pytest.fixture
def on_gpu(solver_ops: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes pinv and lstsq take these decompositions, as they do for matrices on a GPU."""
    monkeypatch.setattr(decompositions, "_OPS", solver_ops)
    monkeypatch.setattr(decompositions, "_on_gpu", lambda X: True)
    return solver_ops


def twins(
    dtype: torch.dtype = torch.float32,
    optimizer: Callable[..., FusedOptimizer] = fusedstep.AdamW,
    **options: Any,
) -> tuple[list[list[torch.Tensor]], list[FusedOptimizer]]:
    """Two optimizers over equal parameters: for the CUDA path and for the CPU's."""
    params = [make_params(*SHAPES, dtype=dtype, seed=3) for _ in range(2)]
    groups = [
        [{"params": p[:3]}, {"params": p[3:], "lr": 1e-2, "weight_decay": 0.5}] for p in params
    ]
    return params, [optimizer(g, **options) for g in groups]


def step_on_cpu(optimizer: FusedOptimizer) -> None:
    with pytest.MonkeyPatch.context() as patch:
        op = torch.ops.fusedstep.table_step_.default
        patch.setattr(step_module, "_STEP", op)
        optimizer.step()


def assert_twins(params: list[list[torch.Tensor]], optimizers: list[FusedOptimizer]) -> None:
    for i, (a, b) in enumerate(zip(*params, strict=True)):
        assert_same_bits(a, b, f"parameter {i}")
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (a, b), strict=True)]
        for name in states[1]:
            assert_same_bits(states[0][name], states[1][name], f"{name} of parameter {i}")


def address_of(optimizer: FusedOptimizer) -> int:
    return next(iter(optimizer._internals.tables.values())).handle.address
