"""Compiles the CUDA kernels as the build does and checks what the compiler made of each of them.

    python -m tests.cuda.report              print the report; status 1 where a kernel got worse
    python -m tests.cuda.report --all        the same for every architecture, in minutes
    python -m tests.cuda.report sm_75 sm_80  the same for these
    python -m tests.cuda.report --update     write what was found to registers.txt and sm_90.txt

No kernel may spill, use local memory, access global memory by generic instructions in a loop or do
arithmetic that has not a CPU's bits (ptx.py), and its main loops take every array 16 bytes at once
where it is aligned. Registers and the numbers of main loops and of such accesses may not get worse
than tests/cuda/expected.py keeps. Under the nvcc that these come from, instructions may neither
rise nor fall by more than 2 %, loads and stores not at all. A warning of the compiler is an error.
Status 2 where nvcc or nvdisasm is missing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from python.buildtools import cuda
from python.buildtools.rules import write_sources
from tests.cuda import nvcc, ptx, sass
from tests.cuda.expected import ARCH, ARCHS, Expected
from tests.cuda.verdict import Kernel, counted, faults, readable, repeated, worse

ROOT = Path(__file__).resolve().parents[2]


class Missing(Exception):
    """A tool that the report needs is not there; the message says what to do."""


def demangle(names: Iterable[str]) -> list[str]:
    """The signatures behind mangled names, by the binutils' c++filt."""
    try:
        result = subprocess.run(
            ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise Missing("no c++filt on PATH: install the binutils") from error
    return result.stdout.split("\n")


def inspect(
    toolkit: Path, nvdisasm: Path, source: Path, flags: list[str], arch: str = ARCH
) -> list[Kernel]:
    """Compiles one source and returns its kernels; `flags` in front of the build's own."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = nvcc.compile_source(toolkit, source, Path(folder), arch, flags)
        code = sass.disassemble(nvdisasm, compiled.cubin)
        inexact = ptx.inexact(compiled.ptx.read_text())
    resources = compiled.resources
    others = sum((inexact[name] for name in inexact.keys() - resources.keys()), Counter())
    names = dict(zip(resources, demangle(resources), strict=False))
    return [
        # What stands in functions of their own counts for all, which may call them.
        Kernel(readable(names[key]), used, code[key], arch, inexact.get(key, Counter()) + others)
        for key, used in resources.items()
    ]


def inspect_all(
    toolkit: Path, nvdisasm: Path, flags: list[str], archs: Iterable[str]
) -> list[Kernel]:
    """The kernels of all sources, by architecture."""
    jobs = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        sources = sorted((ROOT / "kernels").glob("*/*.cu"))
        sources += write_sources("cuda", Path(folder))
        lists = pool.map(
            lambda job: inspect(toolkit, nvdisasm, job[1], flags, job[0]),
            itertools.product(archs, sources),
        )
        return [kernel for found in lists for kernel in found]


def describe(loops: list[sass.Loop], operation: str) -> str:
    """`5 6`: how many accesses of 16 bytes, loop after loop."""
    return " ".join(str(loop.widths(operation)[16]) for loop in loops)


def show(arch: str, kernels: list[Kernel]) -> None:
    """Prints one line a kernel."""
    width = max(len(kernel.name) for kernel in kernels)
    heading = "registers  spilled  stack  local  shared  instructions  loads  stores  "
    heading += "16-byte loads | stores in main loops"
    print(f"\n{arch:{width}}  {heading}")
    for kernel in kernels:
        r, counts = kernel.resources, kernel.summary()
        loops = kernel.main_loops
        print(
            f"{kernel.name:{width}}  {r.registers:9}  {r.spill_stores + r.spill_loads:7}  "
            f"{r.stack:5}  {kernel.code.local_accesses:5}  {r.shared:6}  "
            f"{counts['instructions']:12}  {counts['loads']:5}  {counts['stores']:6}  "
            f"{describe(loops, 'load')} | {describe(loops, 'store')}"
        )


def find_tools() -> tuple[Path, Path]:
    """The toolkit's root and nvdisasm."""
    toolkit = cuda.find_toolkit()
    if toolkit is None:
        raise Missing("no CUDA toolkit: neither CUDA_HOME nor an nvcc on PATH leads to one")
    nvdisasm = sass.find_disassembler(toolkit)
    if nvdisasm is None:
        raise Missing(
            "no nvdisasm in the toolkit, on PATH or in Triton's package, so that the width of "
            "loads cannot be read: pip install nvidia-cuda-nvdisasm"
        )
    return toolkit, nvdisasm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("archs", nargs="*", default=[ARCH], help=f"of {', '.join(ARCHS)}")
    parser.add_argument("--all", action="store_true", help="compile for all of these")
    parser.add_argument("--update", action="store_true", help="write what was found")
    arguments = parser.parse_args()
    archs = ARCHS if arguments.all else arguments.archs
    if not set(archs) <= set(ARCHS):
        parser.error(f"archs must be of {', '.join(ARCHS)}, got {' '.join(archs)}")
    try:
        toolkit, nvdisasm = find_tools()
        flags = nvcc.build_flags(toolkit)
        kernels = inspect_all(toolkit, nvdisasm, flags, archs)
    except Missing as error:
        print(f"cuda-report: {error}")
        return 2
    release = cuda.toolkit_version(toolkit)
    print(f"nvcc {release}: {' '.join(flags)}")
    for arch in archs:
        show(arch, [kernel for kernel in kernels if kernel.arch == arch])

    expected = Expected()
    lines = [line for kernel in kernels for line in faults(kernel)] + repeated(kernels)
    if arguments.update and not lines:
        expected.update(release, kernels)
    for kernel in kernels:
        kept = expected.of(kernel.name, kernel.arch)
        lines += worse(kernel, kept)
        lines += counted(kernel, kept) if kept and release == expected.release else []
    gone = expected.gone(kernel.name for kernel in kernels)
    lines += [f"{name}: was expected but is not in the build" for name in gone]
    if release != expected.release:
        releases = f"what is kept comes from nvcc {expected.release}, this is {release}"
        print(f"\nInstructions, loads and stores are not compared: {releases}.")
    if lines:
        print("\n" + "\n".join(lines))
        return 1
    print(f"\n{len(kernels)} kernels: no spill, no local memory, no fused or approximate", end=" ")
    print("arithmetic, as expected or better")
    return 0


if __name__ == "__main__":
    sys.exit(main())
