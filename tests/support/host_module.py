"""The CUDA path compiled for the host: built once for each state of its sources, and loaded.

csrc/cuda and the kernels are compiled as they are against the SIMT harness (tests/simt). The module
(tests/simt/torch/module.cpp) is kept in build/host, for the tests and for bench.gpu.rehearsal.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pybind11
import torch

from python.buildtools.flags import CXX_NUMERICS, STANDARD
from python.buildtools.minimum_torch import TORCH_TARGET_VERSION
from python.buildtools.rules import write_sources
from tests.support.compiler import link

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "host"
NAME = "fusedstep_simt"
# All of csrc/cuda but its own module and what opens the real cuBLAS and cuSOLVER.
REPLACED = {"module.cpp", "solver_library.cpp"}
GLOBS = ("csrc/cuda/*.cpp", "tests/simt/torch/*.cpp", "kernels/*/*.cu", "tests/simt/src/*.cpp")
FOLDERS = ("csrc", "kernels", "tests/simt", "python/buildtools")  # of all that is read
SUFFIXES = {".h", ".cpp", ".cuh", ".cu", ".in", ".py"}
FLAGS = [*STANDARD, *CXX_NUMERICS, "-O1", "-fPIC", "-fvisibility=hidden", "-w"]
FLAGS += ["-DFUSEDSTEP_SIMT", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-DUSE_CUDA"]
# -Bsymbolic makes the module's own stand-ins for torch's CUDA calls count.
LINKS = ["-shared", "-ltorch_python", "-ltorch_cpu", "-lc10", "-Wl,-Bsymbolic"]


def find_compiler() -> str | None:
    """The C++ compiler of $CXX, else of PATH; None where there is none."""
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def _state(compiler: str) -> str:
    """A name for everything that the module is made of."""
    digest = hashlib.sha256()
    for fact in (Path(compiler).name, torch.__version__, sys.version, *FLAGS, *LINKS):
        digest.update(f"{fact}\n".encode())
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _build(folder: Path, compiler: str) -> Path:
    """Compiles everything in `folder`."""
    # Imported where it is needed: it warns where there is no GPU.
    from torch.utils.cpp_extension import include_paths, library_paths

    # pybind11's own headers first: torch 2.11's copy refuses TORCH_TARGET_VERSION.
    includes = [ROOT / "tests" / "simt" / "include", ROOT, pybind11.get_include()]
    includes += [*include_paths("cpu"), sysconfig.get_paths()["include"]]
    files = sorted(path for pattern in GLOBS for path in ROOT.glob(pattern))
    cuda = ROOT / "csrc" / "cuda"
    files = [path for path in files if path.parent != cuda or path.name not in REPLACED]
    files += write_sources("cuda", folder / "rules")
    library = folder / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [compiler, *FLAGS, *(f"-I{path}" for path in includes)]
    link(command, files, library, [*(f"-L{path}" for path in library_paths("cpu")), *LINKS])
    return library


@cache
def load(compiler: str) -> Any:
    """The module, which is compiled first where its sources are not those that were compiled last.

    One build is kept. Processes that want it at the same time wait for the one that builds.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = _state(compiler)
        folder = KEPT / state
        library = folder / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not library.exists():
            for old in KEPT.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            unfinished = KEPT / "unfinished"
            unfinished.mkdir()
            _build(unfinished, compiler)
            for made in unfinished.glob("*.o"):
                made.unlink()
            unfinished.rename(folder)
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
