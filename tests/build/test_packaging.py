"""The finished build: what is loaded under which torch, what it says, what an sdist carries."""

from __future__ import annotations

import ast
import importlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

import fusedstep
from fusedstep import build
from fusedstep.__main__ import openmp
from python.buildtools.minimum_torch import MINIMUM_TORCH, TORCH_TARGET_VERSION, declared

ROOT = Path(__file__).resolve().parents[2]
BUILT_WITH_CUDA = {"cuda": "13.0", "cuda_reason": ""}


@pytest.mark.parametrize(
    ("facts", "torch_cuda", "reason"),
    [
        (BUILT_WITH_CUDA, "13.1", ""),
        (BUILT_WITH_CUDA, None, "left alone: torch 2.13.0 is without CUDA"),
        (BUILT_WITH_CUDA, "12.8", "left alone: built for CUDA 13.0, torch 2.13.0 has 12.8"),
        ({"cuda_reason": "FUSEDSTEP_CUDA=0"}, "13.0", "left out of this build: FUSEDSTEP_CUDA=0"),
    ],
)
def test_cuda_module_is_loaded_only_where_it_fits(
    facts: dict[str, str], torch_cuda: str | None, reason: str
) -> None:
    assert build.cuda_mismatch(facts, "2.13.0", torch_cuda) == reason


def test_this_process_says_why_it_has_no_cuda_module() -> None:
    reason = build.cuda_mismatch(build.FACTS, torch.__version__, torch.version.cuda)
    assert reason == build.CUDA_REASON
    assert (build._C_cuda is None) == bool(reason)


def test_cuda_tensors_without_cuda_kernels_get_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "CUDA_REASON", "left out of this build: FUSEDSTEP_CUDA=0")
    with pytest.raises(RuntimeError, match=r"no CUDA kernels \(left out .*=0\); move") as error:
        build.require_cuda(torch.device("cuda", 1))
    assert "\n" not in str(error.value)
    build.require_cuda(torch.device("cpu"))
    monkeypatch.setattr(build, "CUDA_REASON", "")
    build.require_cuda(torch.device("cuda", 1))


def test_broken_cuda_module_warns_and_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing_library(name: str) -> None:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", missing_library)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.warns(RuntimeWarning, match="_C_cuda does not load: libcudart"):
        module, reason = build._load_cuda(BUILT_WITH_CUDA)
    assert module is None
    assert reason.startswith("_C_cuda does not load")


def test_modules_of_different_builds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: build._C)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ImportError, match="different builds"):
        build._load_cuda(BUILT_WITH_CUDA)


def test_old_torch_and_missing_module_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.0+cu130")
    with pytest.raises(ImportError, match=r"needs torch >= 2.11, found 2.10.0\+cu130"):
        build._load_cpu()

    def no_module(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(torch, "__version__", "2.11.0")
    monkeypatch.setattr(importlib, "import_module", no_module)
    with pytest.raises(ImportError, match="pip install --no-build-isolation"):
        build._load_cpu()


def test_facts_belong_to_these_sources() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert build.FACTS["version"] == declared[1]
    assert build.FACTS["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert bool(build.FACTS["cuda"]) != bool(build.FACTS["cuda_reason"])


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of the binutils")
def test_modules_use_only_the_stable_abi() -> None:
    for path in Path(build._C.__file__).parent.glob("_C*.so"):
        command = ["nm", "--dynamic", "--undefined-only", str(path)]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "torch_library" in names or "aoti_torch" in names, "the modules register no op"
        assert not re.findall(r"\b_Z\w*(?:c10|at|torch)\d\w*", names), path.name


def test_kernels_include_no_torch_header() -> None:
    kernels = [path for path in (ROOT / "kernels").rglob("*") if path.is_file()]
    assert kernels
    pattern = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|pybind11)/')
    assert [str(path) for path in kernels if pattern.search(path.read_text())] == []


def test_makefile_installs_what_pyproject_needs_to_build() -> None:
    declared = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    installed = re.search(r"^BUILD_REQUIRES := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    needed = {item.strip(' "') for item in declared[1].split(",")}
    assert {item.strip('"') for item in installed[1].split()} == {
        item for item in needed if not item.startswith("torch")
    }


def test_the_minimum_torch_is_the_same_everywhere() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    stated = re.findall(r'"torch>=([\d.]+)"', text)
    assert stated == [".".join(map(str, MINIMUM_TORCH))] * 2, "to build and to run"
    assert build.MINIMUM_TORCH == MINIMUM_TORCH
    assert build.FACTS["torch_target"] == stated[0]
    assert int(TORCH_TARGET_VERSION, 16) == (MINIMUM_TORCH[0] << 56) + (MINIMUM_TORCH[1] << 48)


def test_a_minimum_torch_that_is_not_stated_is_refused() -> None:
    assert declared('dependencies = ["numpy", "torch>=3.4"]\n') == (3, 4)
    with pytest.raises(RuntimeError, match=r"^pyproject.toml: dependencies must name torch>="):
        declared('requires = ["torch>=3.4"]\ndependencies = ["torch"]\n')


def public(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_the_stub_names_what_the_module_has() -> None:
    tree = ast.parse((ROOT / "python" / "fusedstep" / "_C.pyi").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    constants = [node for node in tree.body if isinstance(node, ast.AnnAssign)]
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    names = functions | classes.keys() | {ast.unparse(node.target) for node in constants}
    assert public(names) == public(vars(build._C))
    for name, node in classes.items():
        stated = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        assert public(stated) == public(vars(getattr(build._C, name)))


def test_command_line_prints_the_facts() -> None:
    command = [sys.executable, "-m", "fusedstep"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    rows = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert rows["version"] == fusedstep.__version__
    assert rows["_C"] == build._C.__file__
    assert rows["CUDA"].startswith(build.FACTS["cuda"] or "left out: ")
    assert rows["_C_cuda"] == (build.CUDA_REASON or build._C_cuda.__file__)
    assert f"numpy {np.__version__}" in rows["libraries"].split(", ")
    assert platform.machine() in rows["system"]
    assert torch.cuda.is_available() or rows["GPU"] == "none that torch sees"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_openmp_libraries_are_found_where_they_are_loaded() -> None:
    libraries = openmp().split(", ")
    assert all(Path(library).is_file() for library in libraries if library != "none")
    assert (libraries != ["none"]) == torch.backends.openmp.is_available()


def imports(folder: Path) -> set[str]:
    """The packages that are neither Python's nor of this repository.

    Each file of bench/peers imports a library that it is only for, and is left out without it.
    """
    found = set()
    for path in {*folder.rglob("*.py")} - {*ROOT.glob("bench/peers/*")}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"fusedstep", "bench", "tests", "python"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("python/fusedstep", ["nqm", "trainers"]),
        ("bench", ["bench", "test"]),
        ("tests", ["bench", "test", "trainers"]),
    ],
)
def test_every_import_is_of_a_declared_requirement(folder: str, extras: list[str]) -> None:
    command = [sys.executable, str(ROOT / "python" / "buildtools" / "extras.py"), *extras]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    declared = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in lines}
    # torch needs typing_extensions itself.
    assert imports(ROOT / folder) - declared - {"torch", "numpy", "typing_extensions"} == set()


@pytest.mark.slow
def test_what_is_installed_has_its_types(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    package = tmp_path / "fusedstep"
    assert {path.name for path in package.iterdir()} > {"py.typed", "_C.pyi", "optim"}


@pytest.mark.slow
def test_sdist_carries_every_source(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    with tarfile.open(next(tmp_path.glob("fusedstep-*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ["bench", "csrc", "docs", "kernels", "python", "tests"]
    sources = {
        str(path.relative_to(tree))
        for folder in folders
        for path in (tree / folder).rglob("*.*")
        if path.is_file() and ".egg-info" not in str(path)
    }
    assert {"setup.py", "pyproject.toml", "CMakeLists.txt", "Makefile", "LICENSE"} <= names
    assert len(sources) > len(folders)
    assert sources - names == set()
