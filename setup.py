"""Builds the two C++ modules: _C (op schemas, CPU kernels) and _C_cuda (CUDA kernels).

Both are written against torch's stable ABI, so one build serves every torch from the oldest that
pyproject.toml allows. pybind11 cannot target Python's limited API: there is one wheel for each
Python version.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip's build backend leaves the project's folder out

try:
    import ninja
    import pybind11
    import setuptools
    import torch
except ModuleNotFoundError as error:
    sys.exit(f"fusedstep: building without isolation needs {error.name}: pip install {error.name}")

from setuptools.command.build import build

from python.buildtools import cuda
from python.buildtools.facts import fingerprint, write_header
from python.buildtools.flags import CXX_FLAGS, NVCC_FLAGS
from python.buildtools.minimum_torch import MINIMUM_TORCH, TORCH_TARGET_VERSION
from python.buildtools.rules import write_sources

FOUND = cuda.find_toolkit()
if FOUND:
    os.environ["CUDA_HOME"] = str(FOUND)  # torch would take the folder of a wrapper called nvcc

from torch.utils import cpp_extension  # reads CUDA_HOME when it is imported

GENERATED = ROOT / "build" / "generated"
OBJECTS = ROOT / "build" / "objects"

# Continuous integration sets it; a newer compiler's new warning must stop no one from installing.
ERRORS = ["-Werror"] if os.environ.get("FUSEDSTEP_WERROR") == "1" else []


def check_tools() -> None:
    """Ends with one sentence where torch or setuptools is too old; puts ninja on PATH."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
        least = ".".join(map(str, MINIMUM_TORCH))
        sys.exit(f"fusedstep: building needs torch >= {least}, found {torch.__version__}")
    if int(setuptools.__version__.split(".")[0]) < 77:
        sys.exit(f"fusedstep: building needs setuptools >= 77, found {setuptools.__version__}")
    # torch runs ninja by its bare name, which a virtual environment that is not activated hides.
    os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", os.defpath)])


def plan_cuda() -> cuda.CudaPlan:
    """Decides about CUDA as FUSEDSTEP_CUDA says and prints what was decided."""
    root = FOUND
    if root is None and cpp_extension.CUDA_HOME and cuda.is_toolkit(Path(cpp_extension.CUDA_HOME)):
        root = Path(cpp_extension.CUDA_HOME)  # torch knows the usual place of installation
    setting = os.environ.get("FUSEDSTEP_CUDA", "auto")
    try:
        plan = cuda.decide(setting, torch.__version__, torch.version.cuda, root)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"fusedstep: {error}")
    if plan.root and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        codes = cuda.nvcc_output(plan.root, "--list-gpu-code").split()
        # cuda.get_arch_list() is empty without a GPU.
        built_for = torch._C._cuda_getArchFlags() or ""
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda.default_archs(built_for, codes)
    print(f"fusedstep: CUDA module {f'left out: {plan.reason}' if plan.reason else 'is built'}")
    return plan


def bound_jobs() -> None:
    """Limits each ninja to the CPUs given, and all to 2 GiB for each compiler; MAX_JOBS wins."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    os.environ.setdefault("MAX_JOBS", str(max(1, min(cpus, memory // 2**31 // len(MODULES)))))


def build_facts(plan: cuda.CudaPlan, version: str) -> dict[str, str]:
    """What `python -m fusedstep` prints about this build."""
    return {
        "version": version,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "torch_target": ".".join(map(str, MINIMUM_TORCH)),
        "pybind11": pybind11.__version__,
        "cxx_flags": " ".join(CXX_FLAGS),
        "cuda": plan.version,
        "cuda_archs": os.environ["TORCH_CUDA_ARCH_LIST"] if plan.root else "",
        "cuda_flags": " ".join(NVCC_FLAGS) if plan.root else "",
        "cuda_reason": plan.reason,
        "sources": fingerprint(ROOT),
    }


class BuildFromEmpty(build):
    """Empties build_lib first: a wheel would pack modules that an earlier build left there."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildModules(cpp_extension.BuildExtension):
    """Compiles with ninja, both modules at once; every kind of build re-uses the same objects."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = len(MODULES)  # setuptools then has a thread for each

    def build_extension(self, ext: setuptools.Extension) -> None:
        of_this_thread = copy.copy(self)
        of_this_thread.build_temp = str(OBJECTS / ext.name)
        super(BuildModules, of_this_thread).build_extension(ext)

    def run(self) -> None:
        facts = build_facts(PLAN, self.distribution.get_version())
        write_header(GENERATED / "build_facts_table.h", facts)
        bound_jobs()
        super().run()


def module(
    name: str,
    globs: list[str],
    device: str,
    libraries: list[str],
    macros: Sequence[tuple[str, str | None]],
    includes: Sequence[Path] = (),
) -> setuptools.Extension:
    """One C++ module; it links only what it uses, so that _C loads on a torch without CUDA."""
    foreign = [*cpp_extension.include_paths("cpu"), pybind11.get_include()]
    system = [part for path in foreign for part in ("-isystem", path)]  # no warnings of theirs
    sources = [path for glob in globs for path in ROOT.glob(glob)]
    sources += write_sources(device, GENERATED / device, ROOT)
    names = [str(path.relative_to(ROOT)) for path in sources]
    return setuptools.Extension(
        f"fusedstep.{name}",
        sorted(names),
        include_dirs=[
            *[str(ROOT), str(GENERATED)],
            *[path for path in cpp_extension.include_paths(device) if path not in foreign],
            *[str(folder) for folder in includes],
        ],
        library_dirs=cpp_extension.library_paths(device),
        libraries=libraries,
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION), *macros],
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *ERRORS, *system],
            "nvcc": [*NVCC_FLAGS, *system],
        },
        language="c++",
    )


check_tools()
PLAN = plan_cuda()
ROOMS = ["csrc", "csrc/linalg", "csrc/lm_head", "csrc/optim", "kernels/*"]
MODULES = [module("_C", [f"{room}/*.cpp" for room in ROOMS], "cpu", ["torch_cpu"], [])]
if PLAN.root:
    globs = ["csrc/cuda/*.cpp", "kernels/*/*.cu"]
    libraries = ["torch_cpu", "torch_cuda", "cudart"]
    macros = [("USE_CUDA", None)]
    MODULES.append(module("_C_cuda", globs, "cuda", libraries, macros, PLAN.includes))

setuptools.setup(ext_modules=MODULES, cmdclass={"build": BuildFromEmpty, "build_ext": BuildModules})
