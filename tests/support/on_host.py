"""The CUDA path compiled for the host: its build, as fixtures, and what its tests share.

csrc/cuda and the kernels are compiled as they are against the SIMT harness (tests/simt), whose
copies are late and whose allocations obey the rules of graph capture. fusedstep._C.use_device puts
the result in the CPU's place, so that the ordinary ops run the CUDA path over CPU tensors.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

import fusedstep
from fusedstep import _C
from fusedstep.optim.optimizer import FusedOptimizer
from python.buildtools.flags import CXX_NUMERICS, STANDARD
from python.buildtools.minimum_torch import TORCH_TARGET_VERSION
from python.buildtools.rules import write_sources
from tests.support.compiler import link
from tests.support.tensors import assert_same_bits, make_params

ROOT = Path(__file__).resolve().parents[2]
# All of csrc/cuda but its own module and what opens the real cuBLAS and cuSOLVER.
REPLACED = {"module.cpp", "solver_library.cpp"}
GLOBS = ("csrc/cuda/*.cpp", "tests/simt/torch/*.cpp", "kernels/*/*.cu", "tests/simt/src/*.cpp")
# -Bsymbolic makes the module's own stand-ins for torch's CUDA calls count.
FLAGS = [*STANDARD, *CXX_NUMERICS, "-O1", "-fPIC", "-fvisibility=hidden", "-w"]
FLAGS += ["-DFUSEDSTEP_SIMT", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-DUSE_CUDA"]
SHAPES = ((70, 300), (), (0, 3), (5,), (33000,), (16, 16))


@pytest.fixture(scope="session")
def simt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module of tests/simt/torch/module.cpp."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler on PATH")
    folder = tmp_path_factory.mktemp("simt")
    includes = [ROOT / "tests" / "simt" / "include", ROOT, *include_paths("cpu")]
    includes.append(sysconfig.get_paths()["include"])
    files = sorted(path for pattern in GLOBS for path in ROOT.glob(pattern))
    cuda = ROOT / "csrc" / "cuda"
    files = [path for path in files if path.parent != cuda or path.name not in REPLACED]
    files += write_sources("cuda", folder / "rules")

    library = folder / f"fusedstep_simt{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [compiler, *FLAGS, *(f"-I{path}" for path in includes)]
    links = ["-shared", *(f"-L{path}" for path in library_paths("cpu")), "-ltorch_cpu"]
    link(command, files, library, [*links, "-Wl,-Bsymbolic"])
    spec = importlib.util.spec_from_file_location("fusedstep_simt", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def using(capsule: Any) -> Iterator[None]:
    """Ops on CPU tensors call this device: `simt.DEVICE`, or `_C.DEVICE` for the CPU's own."""
    previous = _C.use_device("cpu", capsule)
    try:
        yield
    finally:
        _C.use_device("cpu", previous)


def on_cpu() -> Any:
    """The CPU's own device, where `on_simt` has put another in its place."""
    return using(_C.DEVICE)


@pytest.fixture
def on_simt(simt: Any) -> Iterator[Any]:
    """Makes every op on CPU tensors run the CUDA path; the module is what tests control it by."""
    simt.seed(1)
    simt.finish()
    simt.fail_next("")
    simt.gives_up(-1)
    simt.libraries_missing(False)
    with using(simt.DEVICE):
        yield simt


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
    with on_cpu():
        optimizer.step()


def assert_twins(params: list[list[torch.Tensor]], optimizers: list[FusedOptimizer]) -> None:
    for i, (a, b) in enumerate(zip(*params, strict=True)):
        assert_same_bits(a, b, f"parameter {i}")
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (a, b), strict=True)]
        for name in states[1]:
            assert_same_bits(states[0][name], states[1][name], f"{name} of parameter {i}")
