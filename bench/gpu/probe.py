"""What this machine has: said at once, for a machine that differs may make all else pointless.

Python, its headers, the compilers, the tools, the packages, the GPU; torch last, whose import takes
seconds.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from bench.gpu.rows import Row
from bench.record import ROOT
from python.buildtools import cuda
from python.buildtools.minimum_torch import MINIMUM_TORCH

OLDEST_PYTHON, OLDEST_GCC = (3, 10), 12
BUILD, TEST = ("setuptools", "pybind11", "ninja"), ("pytest", "hypothesis")


def first_line(*command: str) -> str:
    """What a command says first; "" where it is absent, fails, or takes five seconds."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.split("\n")[0].strip() if result.returncode == 0 else ""


def expect(name: str, result: str, target: str, holds: bool) -> None:
    Row(name, result or "absent", target, holds).show()


def python() -> None:
    version = ".".join(map(str, OLDEST_PYTHON))
    found = f"{platform.python_version()}, {sys.executable}"
    expect("Python", found, f">= {version}", sys.version_info >= OLDEST_PYTHON)
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    expect("Python.h", str(header) if header.exists() else "", "there", header.exists())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = sorted(path.name for path in (ROOT / "python" / "fusedstep").glob("_C*.so"))
    fits = [name for name in built if name.endswith(suffix)]
    Row("modules that are built", f"{len(fits)} of {len(built)} are for this Python").show()


def compilers() -> None:
    """The C++ compiler that setup.py takes, and nvcc."""
    name = os.environ.get("CXX") or "g++"
    version = first_line(*name.split(), "--version")
    major = re.search(r" (\d+)\.\d+", version)
    new_enough = "clang" in version or bool(major and int(major[1]) >= OLDEST_GCC)
    expect(name, version, f">= {OLDEST_GCC}", new_enough)
    toolkit = cuda.find_toolkit()
    found = f"{cuda.toolkit_version(toolkit)}, {toolkit}" if toolkit else ""
    expect("nvcc", found, "there", toolkit is not None)


def find_tool(name: str) -> str:
    """The path of a program of the toolkit, on PATH or in its folder; "" if absent."""
    toolkit = cuda.find_toolkit()
    inside = toolkit / "bin" / name if toolkit else None
    return shutil.which(name) or (str(inside) if inside and inside.exists() else "")


def tools_and_packages() -> None:
    for name in ("compute-sanitizer", "ncu"):
        Row(name, find_tool(name) or "absent: what needs it is left out").show()
    limit = importlib.util.find_spec("pytest_timeout")
    Row("pytest_timeout", "there" if limit else "absent: a test may take a file's time").show()
    for names, what in ((BUILD, "packages for the build"), (TEST, "packages for the tests")):
        lacking = [name for name in names if not importlib.util.find_spec(name)]
        expect(what, f"no {', '.join(lacking)}" if lacking else "there", "there", not lacking)


def machine() -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    disk = shutil.disk_usage(ROOT).free / 2**30
    cores = len(os.sched_getaffinity(0))
    Row("machine", f"{cores} cores, {memory:.0f} GiB memory, {disk:.0f} GiB disk").show()
    Row("driver", gpu_and_driver() or "nvidia-smi does not answer").show()


def gpu_and_driver() -> str:
    """The name of the first GPU and the driver's version, without torch."""
    return first_line("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


def gpu() -> None:
    """What torch sees. The runner stops where it sees no GPU."""
    import torch

    least = ".".join(map(str, MINIMUM_TORCH))
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    told = f"{torch.__version__}, CUDA {torch.version.cuda}"
    expect("torch", told, f">= {least}", version >= MINIMUM_TORCH)
    sees = torch.cuda.is_available()
    found = f"torch {torch.__version__} sees no GPU on this machine"
    if sees:
        facts = torch.cuda.get_device_properties(0)
        found = f"{facts.name}, {facts.major}.{facts.minor}, {facts.multi_processor_count} "
        found += f"multiprocessors, {facts.total_memory / 2**30:.0f} GiB"
    expect("GPU", found, "there", sees)


def main() -> None:
    for look in (python, compilers, tools_and_packages, machine, gpu):
        try:
            look()
        except Exception as error:
            Row(look.__name__, f"{type(error).__name__}: {error}", "an answer", False).show()


if __name__ == "__main__":
    main()
