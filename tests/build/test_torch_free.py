"""What may include what: kernels no torch header at all, adapters only torch's stable interface."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
STABLE = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
NOT_STABLE = ("torch/", "ATen/", "c10/", "caffe2/")


def sources(folder: str) -> list[Path]:
    found = [p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in (".h", ".cpp", ".cuh", ".cu")]
    assert found, f"no sources below {folder}"
    return found


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text())


@pytest.mark.parametrize("path", sources("kernels"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_know_nothing_of_torch_and_python(path: Path) -> None:
    foreign = (*NOT_STABLE, "pybind11/", "Python.h", "csrc/", "numpy/")
    assert [name for name in includes(path) if name.startswith(foreign)] == []
    code = re.sub(r"//.*", "", path.read_text())
    assert not re.search(r"\b(torch|at|c10|py|pybind11)::", code)


@pytest.mark.parametrize("path", sources("csrc"), ids=lambda p: str(p.relative_to(ROOT)))
def test_adapters_use_the_stable_interface_alone(path: Path) -> None:
    of_torch = [name for name in includes(path) if name.startswith(NOT_STABLE)]
    assert [name for name in of_torch if not name.startswith(STABLE)] == []


def test_both_checks_see_what_they_look_for(tmp_path: Path) -> None:
    header = tmp_path / "header.h"
    header.write_text('#include <torch/extension.h>\n  #  include "c10/core/Device.h"\n')
    assert includes(header) == ["torch/extension.h", "c10/core/Device.h"]
