"""Compiles one CUDA source as the build does, and reads what ptxas tells."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from python.buildtools.flags import NVCC_FLAGS

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers a thread; all else in bytes."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def build_flags(root: Path) -> list[str]:
    """The flags that setup.py's build gives to nvcc: torch's own, then ours."""
    os.environ["CUDA_HOME"] = str(root)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA runtime"
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS  # reads CUDA_HOME as it is imported

    return [*COMMON_NVCC_FLAGS, *NVCC_FLAGS]


@dataclass(frozen=True)
class Compiled:
    """What nvcc made of a source: machine code, PTX, and the resources of each mangled kernel."""

    cubin: Path
    ptx: Path
    resources: dict[str, Resources]


def compile_source(root: Path, source: Path, folder: Path, arch: str, flags: list[str]) -> Compiled:
    """Compiles `source` for `arch` ("sm_90"), with all that comes of it in `folder`.

    RuntimeError with the compiler's output where it fails or warns.
    """
    cubin = folder / "kernels.cubin"
    target = f"arch={arch.replace('sm', 'compute')},code={arch}"
    command = [root / "bin" / "nvcc", "-cubin", "-gencode", target, *flags, "-Xptxas", "-v"]
    command += ["-Werror", "all-warnings", "-I", ROOT, "--keep", "--keep-dir", folder]
    command += ["-o", cubin, source]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"nvcc failed on {source.name}:\n{result.stdout}{result.stderr}")
    return Compiled(cubin, folder / f"{source.stem}.ptx", parse_resources(result.stderr))


def parse_resources(text: str) -> dict[str, Resources]:
    """The resources of each entry function in what `ptxas -v` printed."""
    found = {}
    for block in text.split("Compiling entry function")[1:]:
        name = re.match(r" '(\S+)'", block)[1]
        frame = re.search(
            rf"properties for {re.escape(name)}\s+(\d+) bytes stack frame, "
            r"(\d+) bytes spill stores, (\d+) bytes spill loads",
            block,
        )
        used = re.search(r"Used (\d+) registers(.*)", block)
        shared = re.search(r"(\d+) bytes smem", used[2])
        found[name] = Resources(
            int(used[1]), *map(int, frame.groups()), int(shared[1]) if shared else 0
        )
    return found
