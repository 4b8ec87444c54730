"""The kernels for other CPUs and by other compilers: the same bits from each, where they are found.

An emulator shows what a CPU of that kind computes, not how fast it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pybind11
import pytest
from torch.utils.cpp_extension import include_paths

from python.buildtools.facts import write_header
from python.buildtools.flags import COMMON_FLAGS, width_flags
from python.buildtools.minimum_torch import TORCH_TARGET_VERSION
from python.buildtools.rules import write_sources
from tests.support.compiler import link

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted((ROOT / "kernels").glob("*/*.cpp"))
HERE = sysconfig.get_platform()
ALIKE = ["-DFUSEDSTEP_FUSED="]  # products and sums are not fused, which only some CPUs can


@dataclass(frozen=True)
class Build:
    """A compiler and the CPU that it compiles for."""

    compilers: Sequence[str]  # names of one and the same
    platform: str  # as sysconfig.get_platform() names it
    options: Sequence[str] = ()
    emulators: Sequence[str] = ()  # which run its programs; none: this CPU does
    needs: Sequence[str] = ()  # other programs that it calls or that come with what it links

    def command(self) -> list[str]:
        """The compiler with the flags of the modules; skips the test where something is missing."""
        found = found_first(self.compilers)
        for need in self.needs:
            found_first([need])
        return [found, *COMMON_FLAGS, *width_flags(self.platform), *self.options, f"-I{ROOT}"]

    def runner(self) -> list[str]:
        """What comes before a program's name to run it."""
        return [found_first(self.emulators)] if self.emulators else []


def found_first(names: Sequence[str]) -> str:
    """The first of these programs that is on PATH; skips the test where none is."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"needs {' or '.join(names)}")


NATIVE = Build([os.environ.get("CXX", "c++"), "c++", "g++", "clang++"], HERE)
CLANG = ("clang++", *(f"clang++-{version}" for version in range(30, 15, -1)))
AARCH64 = Build(
    ["aarch64-linux-gnu-g++"],
    "linux-aarch64",
    # All libraries in one file: the emulator needs none of the other system's.
    options=["-static"],
    emulators=["qemu-aarch64", "qemu-aarch64-static"],
)
OTHERS = {
    "aarch64": AARCH64,
    "clang": Build(CLANG, HERE),
    "clang-of-this-cpu": Build(
        CLANG, HERE, options=["-march=native" if HERE.endswith("x86_64") else "-mcpu=native"]
    ),
    # The compiler of macOS, for its CPU.
    "clang-aarch64": Build(
        CLANG,
        "linux-aarch64",
        options=["--target=aarch64-linux-gnu", *AARCH64.options],
        emulators=AARCH64.emulators,
        needs=AARCH64.compilers,
    ),
}


def results(build: Build, folder: Path) -> dict[str, str]:
    """What tests/support/every_kernel prints: a hash for each result by its name."""
    command, runner = [*build.command(), *ALIKE], build.runner()
    program = folder / "every_kernel"
    sources = [*(ROOT / "tests/support/every_kernel").glob("*.cpp"), *KERNELS]
    link(command, [*sources, *write_sources("cpu", folder / "rules")], program)
    run = subprocess.run([*runner, program], check=True, capture_output=True, text=True)
    return dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The results of the compiler that builds the modules, on this CPU."""
    found = results(NATIVE, tmp_path_factory.mktemp("native"))
    # Nothing is left out, and results are not all alike.
    kinds = {name.split(" ")[0] for name in found}
    rules = (ROOT / "kernels/optim/rules").glob("*.h")
    assert kinds == {path.stem for path in (*KERNELS, *rules)}
    assert len(set(found.values())) > 400
    return found


@pytest.mark.parametrize("name", OTHERS)
def test_bits_are_those_of_this_cpu(name: str, native: dict[str, str], tmp_path: Path) -> None:
    theirs = results(OTHERS[name], tmp_path)
    assert [key for key in native if native[key] != theirs.get(key)] == []
    assert theirs.keys() == native.keys()


def test_adapters_compile_for_aarch64(tmp_path: Path) -> None:
    """csrc, against this machine's headers of torch and Python, which are the same there."""
    write_header(tmp_path / "build_facts_table.h", {"version": "0"})
    paths = [pybind11.get_include(), *include_paths("cpu"), sysconfig.get_paths()["include"]]
    command = [*AARCH64.command(), "-fsyntax-only", "-Werror", f"-I{tmp_path}"]
    command += [part for path in paths for part in ("-isystem", path)]
    command += [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    sources = sorted({*(ROOT / "csrc").rglob("*.cpp")} - {*(ROOT / "csrc/cuda").rglob("*.cpp")})
    assert sources
    subprocess.run([*command, *sources], check=True)


@pytest.mark.parametrize(
    "platform", ["linux-aarch64", "macosx-11.0-arm64", "macosx-11.0-universal2", "linux-ppc64le"]
)
def test_no_flag_is_of_x86(platform: str) -> None:
    assert not [flag for flag in [*COMMON_FLAGS, *width_flags(platform)] if flag[:2] == "-m"]
    assert width_flags("linux-x86_64") == ["-mprefer-vector-width=512"]
