"""`python -m fusedstep`: what a bug report needs, of the build, of this process, of the machine."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch

from fusedstep import build

# What fusedstep, its examples and its callbacks are used with.
LIBRARIES = ("numpy", "scipy", "lightning", "transformers", "accelerate", "torchtitan")


def built() -> Iterator[tuple[str, str]]:
    """Rows about the build, as recorded in the modules."""
    facts = build.FACTS
    yield "version", facts["version"]
    yield "python", facts["python"]
    yield "torch", f"{facts['torch']}, stable ABI of {facts['torch_target']}"
    yield "pybind11", facts["pybind11"]
    yield "compiler", f"{facts['compiler']} {facts['cxx_flags']}"
    if facts["cuda_reason"]:
        yield "CUDA", f"left out: {facts['cuda_reason']}"
    else:
        yield "CUDA", f"{facts['cuda']} for {facts['cuda_archs']}"
        yield "nvcc", facts["cuda_flags"]


def loaded() -> Iterator[tuple[str, str]]:
    """Rows about this process: the torch in use, which modules serve it, what else is there."""
    yield "python", platform.python_version()
    yield "torch", torch.__version__
    yield "_C", str(build._C.__file__)
    module = build._C_cuda
    if module is None:
        yield "_C_cuda", build.CUDA_REASON
    else:
        yield "_C_cuda", str(module.__file__)
        yield "cuSOLVER", solver_library(module)
    yield "OpenMP", openmp()
    yield "libraries", ", ".join(installed())


def solver_library(module: ModuleType) -> str:
    """cuSOLVER's version and where it is, or why pinv and lstsq cannot run on a GPU here."""
    try:
        return str(module.solver_library())
    except RuntimeError as error:
        return str(error)


def openmp() -> str:
    """The OpenMP libraries that are loaded: two of them may disagree about the threads."""
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return "yes" if torch.backends.openmp.is_available() else "no"
    paths = re.findall(r"\S*/lib(?:gomp|iomp|omp)\S*$", mapped, re.MULTILINE)
    return ", ".join(dict.fromkeys(paths)) or "none"


def installed() -> Iterator[str]:
    """Names and versions of the LIBRARIES that are installed; none is imported."""
    for name in LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def processor_name() -> str:
    """The CPU's marketing name if the system reports it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine() -> Iterator[tuple[str, str]]:
    """Rows about the machine: the system, the processor, then each GPU that torch sees."""
    yield "system", platform.platform()  # with the version of glibc
    yield "CPU", f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"
    yield "threads", f"{torch.get_num_threads()} for torch, {os.cpu_count()} processors"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", f"{gpu.name}, {gpu.major}.{gpu.minor}, {gpu.total_memory >> 30} GiB"
    if not torch.cuda.device_count():
        yield "GPU", "none that torch sees"


def main() -> None:
    """Prints the three tables."""
    for title, rows in (("built", built()), ("loaded", loaded()), ("machine", machine())):
        print(title)
        for name, value in rows:
            print(f"  {name:<9} {value}")


if __name__ == "__main__":
    main()
