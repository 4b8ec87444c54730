"""docs/examples: each runs as its first line says, and comes to what it is an example of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def run(name: str, *arguments: str, launcher: tuple[str, ...] = ()) -> str:
    """What an example prints."""
    command = [sys.executable, *launcher, str(EXAMPLES / name), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    # Once in dozens of launches gloo's own thread dies: see tests/distributed/test_distributed.py.
    if launcher and "Signal 6 (SIGABRT)" in result.stderr:
        warnings.warn("launched again: a rank was ended by SIGABRT", stacklevel=2)
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def losses(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"loss (\d+\.\d+)", text)]


def test_train_gpt() -> None:
    first, *_, last = losses(run("train_gpt.py", "40"))
    assert last < first < 5.6  # log(256) is 5.55


def test_lm_head() -> None:
    uniform, scaled, newton = re.findall(r": (\d+\.\d+)$", run("lm_head.py"), re.MULTILINE)
    assert float(newton) < float(scaled) < float(uniform)


@pytest.mark.processes
def test_fsdp(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = run("fsdp.py", str(tmp_path / "checkpoint"), launcher=ranks)
    norms = re.findall(r"norm (\d+\.\d+)", printed)  # the ranks' lines may run into each other
    assert len(norms) == 2
    assert len(set(norms)) == 1  # the norm of the whole model, on every rank
    assert (tmp_path / "checkpoint" / ".metadata").is_file()


@pytest.mark.gpu
def test_cuda_graph() -> None:
    (loss,) = losses(run("cuda_graph.py"))
    assert loss < 0.7  # it starts at 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_cuda_graph_without_a_gpu() -> None:
    command = [sys.executable, str(EXAMPLES / "cuda_graph.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("needs a CUDA device, torch sees none")


def test_accelerate() -> None:
    pytest.importorskip("accelerate", reason="needs the trainers extra: accelerate")
    first, *_, last = losses(run("accelerate_loop.py"))
    assert last < first


def test_there_is_a_test_for_each() -> None:
    tested = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested
