"""Compiles the CUDA kernels as the build does and checks what the compiler made of each of them.

    python -m tests.cuda.report              print the report; status 1 where a kernel got worse
    python -m tests.cuda.report --update     write what was found to expected.json

No kernel may spill, use local memory or access global memory by generic instructions in a loop, and
its main loops take every array 16 bytes at once where it is aligned; registers and the numbers of
main loops and of such accesses are compared with expected.json. A warning of the compiler is an
error. Status 2 where nvcc or nvdisasm is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from python.buildtools import cuda
from python.buildtools.rules import write_sources
from tests.cuda import nvcc, sass
from tests.cuda.verdict import Kernel, faults, readable, worse

ROOT = Path(__file__).resolve().parents[2]

ARCH = "sm_90"
EXPECTED = Path(__file__).with_name("expected.json")


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


def inspect(toolkit: Path, nvdisasm: Path, source: Path, flags: list[str]) -> list[Kernel]:
    """Compiles one source and returns its kernels; `flags` in front of the build's own."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        resources = nvcc.compile_cubin(toolkit, source, cubin, ARCH, flags)
        code = sass.disassemble(nvdisasm, cubin)
    names = dict(zip(resources, demangle(resources), strict=False))
    return [Kernel(readable(names[key]), resources[key], code[key]) for key in resources]


def inspect_all(toolkit: Path, nvdisasm: Path, flags: list[str]) -> list[Kernel]:
    """The kernels of the norm and of every rule."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max_workers=2) as pool:
        sources = sorted((ROOT / "kernels").glob("*/*.cu"))
        sources += write_sources("cuda", Path(folder))
        lists = pool.map(lambda source: inspect(toolkit, nvdisasm, source, flags), sources)
        return [kernel for found in lists for kernel in found]


def describe(loops: list[sass.Loop], operation: str) -> str:
    """`5 6`: how many accesses of 16 bytes, loop after loop."""
    return " ".join(str(loop.widths(operation)[16]) for loop in loops)


def expectation(release: str, kernels: list[Kernel]) -> str:
    """The text of expected.json: a line for each kernel."""
    rows = sorted(f'  "{kernel.name}": {json.dumps(kernel.summary())}' for kernel in kernels)
    return f'{{\n "nvcc": "{release}",\n "kernels": {{\n' + ",\n".join(rows) + "\n }\n}\n"


def show(kernels: list[Kernel]) -> None:
    """Prints one line a kernel."""
    width = max(len(kernel.name) for kernel in kernels)
    heading = "registers  spilled  stack  local  shared  16-byte loads | stores in main loops"
    print(f"{'':{width}}  {heading}")
    for kernel in kernels:
        r = kernel.resources
        loops = kernel.main_loops
        print(
            f"{kernel.name:{width}}  {r.registers:9}  {r.spill_stores + r.spill_loads:7}  "
            f"{r.stack:5}  {kernel.code.local_accesses:5}  {r.shared:6}  "
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
    parser.add_argument("--update", action="store_true", help=f"write {EXPECTED.name}")
    update = parser.parse_args().update
    try:
        toolkit, nvdisasm = find_tools()
        flags = nvcc.build_flags(toolkit)
        kernels = inspect_all(toolkit, nvdisasm, flags)
    except Missing as error:
        print(f"cuda-report: {error}")
        return 2
    release = cuda.toolkit_version(toolkit)
    print(f"nvcc {release} for {ARCH}: {' '.join(flags)}")
    show(kernels)

    lines = [line for kernel in kernels for line in faults(kernel)]
    expected = {"nvcc": release, "kernels": {k.name: k.summary() for k in kernels}}
    if not update:
        expected = json.loads(EXPECTED.read_text())
    elif not lines:
        EXPECTED.write_text(expectation(release, kernels))
    for kernel in kernels:
        lines += worse(kernel, expected["kernels"].get(kernel.name))
    gone = expected["kernels"].keys() - {kernel.name for kernel in kernels}
    lines += [f"{name}: is in {EXPECTED.name} but not in the build" for name in sorted(gone)]
    if lines:
        print("\n" + "\n".join(lines))
        if release != expected["nvcc"]:
            print(f"(expected.json comes from nvcc {expected['nvcc']}, this is {release})")
        return 1
    print(f"\n{len(kernels)} kernels: no spill, no local memory, as expected or better")
    return 0


if __name__ == "__main__":
    sys.exit(main())
