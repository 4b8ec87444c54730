"""The rule that docs/adding_a_rule.md adds is built from the page, in a copy of the tree, and runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A path at the start of a paragraph, and the code that follows the paragraph.
FILE = re.compile(r"^`([\w/]+\.(?:h|py))`: .*?\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = ("kernels/optim/rules", "python/fusedstep/optim", "tests/reference", "tests/optim")


def files_of_the_walk() -> dict[str, str]:
    return dict(FILE.findall((ROOT / "docs" / "adding_a_rule.md").read_text()))


def test_the_walk_has_one_new_file_of_each_kind() -> None:
    files = files_of_the_walk()
    assert [str(Path(name).parent) for name in files] == list(KINDS)
    assert not any((ROOT / name).exists() for name in files)


@pytest.mark.compiles
@pytest.mark.slow
def test_a_rule_needs_its_four_files_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "*.so", "*.o", "__pycache__", "results")
    shutil.copytree(ROOT, tree, ignore=ignored)
    for name, text in files_of_the_walk().items():
        (tree / name).write_text(text)
    environment = os.environ | {"FUSEDSTEP_CUDA": "0", "PYTHONPATH": str(tree / "python")}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=tree, env=environment, check=True, capture_output=True)
    test = [sys.executable, "-m", "pytest", "-q", "tests/optim/test_signum.py"]
    result = subprocess.run(test, cwd=tree, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout
