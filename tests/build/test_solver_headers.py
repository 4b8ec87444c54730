"""Where the build finds the headers of cuBLAS and cuSOLVER, and the module the libraries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.fake_toolkit import headers

from fusedstep import build
from python.buildtools import solvers

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler on PATH")


def test_a_full_toolkit_needs_no_other_folder(tmp_path: Path) -> None:
    own = headers(tmp_path / "toolkit", *solvers.HEADERS)
    wheel = headers(tmp_path / "wheel", *solvers.HEADERS)
    assert solvers.header_folders(own, [wheel]) == ()
    assert solvers.header_folders(own, []) == ()


def test_what_a_toolkit_lacks_is_taken_from_the_wheels(tmp_path: Path) -> None:
    own = headers(tmp_path / "toolkit")
    both = headers(tmp_path / "cu13", *solvers.HEADERS, version="12 0 4")
    assert solvers.header_folders(own, [both]) == (both,)
    blas, solver = (headers(tmp_path / name, name) for name in solvers.HEADERS)
    assert solvers.header_folders(own, [blas, solver]) == (blas, solver)
    half = headers(tmp_path / "half", "cublas_v2.h")
    assert solvers.header_folders(half, [blas, solver]) == (solver,)


@pytest.mark.parametrize("missing", solvers.HEADERS)
def test_a_header_that_is_nowhere_is_named(tmp_path: Path, missing: str) -> None:
    own = headers(tmp_path, *(name for name in solvers.HEADERS if name != missing))
    with pytest.raises(LookupError, match=f"^{missing} is neither in {re.escape(str(own))} nor"):
        solvers.header_folders(own, [])


def test_a_cusolver_without_batched_eigenvalues_is_refused(tmp_path: Path) -> None:
    own = headers(tmp_path, *solvers.HEADERS, version="11 6 4")
    with pytest.raises(LookupError, match=r"cuSOLVER 11\.6\.4 in .* is older than 11\.7\.1$"):
        solvers.header_folders(own, [])


def test_folders_of_the_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cu13", "cublas", "cusolver", "cudnn"):
        (tmp_path / "nvidia" / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    nvidia = tmp_path / "nvidia"
    found = solvers.wheel_folders("13.0")
    assert found == [nvidia / name / "include" for name in ("cu13", "cublas", "cusolver")]
    assert solvers.wheel_folders("12.8") == found[1:]
    sys.modules.pop("nvidia", None)
    monkeypatch.setattr(sys, "path", [])
    assert solvers.wheel_folders("13.0") == []


def exported(listing: str) -> list[str]:
    """The names in one of the lists of csrc/cuda/solver_library.h."""
    text = (ROOT / "csrc" / "cuda" / "solver_library.h").read_text()
    body = text.split(f"#define FUSEDSTEP_{listing}_FUNCTIONS(F)")[1].split("\n\n")[0]
    names = re.findall(r"\bF\((\w+)\)", body.split("#define")[0])
    assert len(names) > 5
    return names


def library(path: Path, names: list[str]) -> None:
    """A shared library that exports these names and does nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = "".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in names)
    command = [COMPILER, "-shared", "-fPIC", "-x", "c++", "-", f"-Wl,-soname,{path.name}"]
    subprocess.run([*command, "-o", path], input=source, text=True, check=True)


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that opens both libraries and prints where it found cuSOLVER, or what is wrong."""
    folder = tmp_path_factory.mktemp("opener")
    (folder / "main.cpp").write_text(
        """
        #include <cstdio>
        #include <stdexcept>
        #include "csrc/cuda/solver_library.h"
        int main() {
          for (int attempt = 0; attempt < 2; ++attempt) {
            try {
              std::puts(fusedstep::cuda::solver_library().path.c_str());
            } catch (const std::runtime_error& error) {
              std::puts(error.what());
            }
          }
        }
        """
    )
    sources = [folder / "main.cpp", ROOT / "csrc" / "cuda" / "solver_library.cpp"]
    includes = [f"-I{ROOT}", f"-I{ROOT / 'tests' / 'simt' / 'include'}"]
    command = [COMPILER, "-std=c++20", "-w", *includes, *sources, "-ldl", "-o", folder / "opener"]
    subprocess.run(command, check=True)
    return folder / "opener"


def opened(opener: Path, *folders: Path) -> str:
    """What it prints, twice the same, where the loader searches these folders."""
    environ = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(map(str, folders))}
    output = subprocess.run([opener], env=environ, capture_output=True, text=True, check=True)
    first, second = output.stdout.splitlines()
    assert first == second, "a failure is not remembered, nor a success forgotten"
    return first


@needs_compiler
@pytest.mark.parametrize("place", ["lib", "../cusolver/lib"])
def test_cusolver_is_found_from_where_cublas_is(opener: Path, tmp_path: Path, place: str) -> None:
    """In one folder, as in a toolkit and in the wheels of CUDA 13; in two, as in those of 12."""
    cublas = tmp_path / "nvidia" / "cublas" / "lib"
    cusolver = (tmp_path / "nvidia" / "cublas" / place).resolve()
    library(cublas / "libcublas.so.13", exported("CUBLAS"))
    library(cusolver / "libcusolver.so.12", exported("CUSOLVER"))
    assert Path(opened(opener, cublas)).resolve() == cusolver / "libcusolver.so.12"


@needs_compiler
def test_cusolver_beside_cublas_goes_before_the_loaders_own(opener: Path, tmp_path: Path) -> None:
    library(tmp_path / "torch" / "libcublas.so.13", exported("CUBLAS"))
    for folder in ("system", "torch"):
        library(tmp_path / folder / "libcusolver.so.12", exported("CUSOLVER"))
    found = opened(opener, tmp_path / "system", tmp_path / "torch")
    assert Path(found).parent == tmp_path / "torch"
    (tmp_path / "torch" / "libcusolver.so.12").unlink()
    found = opened(opener, tmp_path / "system", tmp_path / "torch")
    assert Path(found).parent == tmp_path / "system"


@needs_compiler
def test_what_is_missing_is_named(opener: Path, tmp_path: Path) -> None:
    assert opened(opener, tmp_path).startswith("fusedstep: no libcublas.so.13: ")
    library(tmp_path / "libcublas.so.13", exported("CUBLAS"))
    assert opened(opener, tmp_path).startswith("fusedstep: no libcusolver.so.12: ")
    some = [name for name in exported("CUSOLVER") if "Xsyev" not in name]
    library(tmp_path / "libcusolver.so.12", some)
    message = opened(opener, tmp_path)
    assert message.startswith("fusedstep: ")
    assert "undefined symbol: cusolverDnXsyevBatched" in message


@pytest.mark.skipif(bool(build.CUDA_REASON), reason="needs the CUDA module")
def test_the_libraries_of_torch_are_found() -> None:
    """No GPU is needed for that."""
    version, path = build._C_cuda.solver_library().split(" ", 1)
    assert int(version) >= 11701
    assert Path(path).is_file()
    rows = subprocess.run([sys.executable, "-m", "fusedstep"], capture_output=True, text=True)
    assert f"cuSOLVER  {version} {path}" in rows.stdout
