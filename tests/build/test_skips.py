"""The report of skipped tests: each reason is named once, with the number of tests it concerns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
import pytest

@pytest.mark.parametrize("i", range(3))
def test_without_a_file(i):
    pytest.skip("needs a file")

@pytest.mark.gpu
def test_on_a_gpu():
    pass

def test_on(device):
    assert device.type in ("cpu", "cuda")
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the skips of a machine without a GPU")
def test_skips_are_counted_by_reason(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    # conftest.py loads fixtures of tests/support.
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped: 5, torch" in result.stdout
    assert "    3  needs a file\n" in result.stdout
    assert "    2  needs a CUDA device, torch sees none\n" in result.stdout
    assert result.stdout.rstrip().splitlines()[-1].startswith("=")
    assert "1 passed, 5 skipped" in result.stdout.rstrip().splitlines()[-1]
