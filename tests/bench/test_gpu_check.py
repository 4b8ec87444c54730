"""make gpu-check without a GPU: its parts in order, their limits, verdicts, what is kept."""

from __future__ import annotations

import ast
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gpu_check
from bench.gpu import bitwise, closed_form, forms, parts, rows, runner, small, timings
from bench.measure import cpu_seconds
from bench.record import ROOT
from bench.step_cases import Case

FACTS = {
    "name": "NVIDIA H100 80GB HBM3",
    "capability": "9.0",
    "driver": "580.1",
    "torch": "2.11.0",
    "cuda": "13.0",
}


class FakeRunner:
    """Answers for the commands of the parts as tools and scripts do where all is well."""

    def __init__(self, **answers: tuple[int, str]) -> None:
        self.answers = answers
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []

    def __call__(self, command: list[str], env: dict[str, str], log: Path, seconds: float) -> int:
        self.commands.append(command)
        self.environments.append(env)
        if command[-1].endswith(".json"):
            rows.Findings(Path(command[-1])).row(log.stem, "0 differ", "0 differ")
        good = "===== 4 passed, 1 skipped in 2.01s =====\n========= ERROR SUMMARY: 0 errors\n"
        status, text = self.answers.get(log.stem.replace("-", "_"), (0, good))
        log.write_text(text)
        return status


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "out").mkdir()
    return {"results": tmp_path / "results", "logs": tmp_path / "logs", "out": tmp_path / "out"}


def check(folders: dict[str, Path], run, seconds: float = 100, facts: dict = FACTS) -> int:
    return gpu_check.check(facts, **folders, seconds=seconds, run=run)


def test_all_parts_run_and_the_results_are_kept(folders, capsys) -> None:
    run = FakeRunner()
    assert check(folders, run) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[-1] == "all passed"
    names = (
        "build",
        "GPU tests",
        "bitwise",
        "graphs",
        "timings",
        "closed_form",
        *parts.SANITIZERS,
    )
    assert [name for name in names if not any(line.startswith(name) for line in lines)] == []
    assert run.environments[0] == {"FUSEDSTEP_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    assert ["--tool", "racecheck"] in [command[1:3] for command in run.commands]

    path = folders["results"] / "gpu-nvidia-h100-80gb-hbm3.json"
    kept = json.loads(path.read_text())
    assert {key: kept[key] for key in FACTS} == FACTS
    assert kept["passed"] is True
    assert kept["commit"]
    assert kept["parts"]["GPU tests"]["rows"][0]["result"] == "4 passed, 1 skipped"
    assert (folders["out"] / path.name).read_text() == path.read_text()
    assert "== racecheck" in (folders["out"] / "gpu-check.log").read_text()
    assert len(list(folders["out"].iterdir())) <= 8


def test_a_failing_part_is_shown_with_its_log_and_the_rest_still_runs(folders, capsys) -> None:
    hazard = "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"
    run = FakeRunner(racecheck=(9, f"planted hazard\n{hazard}\n"))
    assert check(folders, run) == 1
    shown = capsys.readouterr().out
    assert "planted hazard" in shown
    assert shown.strip().endswith("1 of 10 failed")
    assert "initcheck" in [command[2] for command in run.commands]


def test_nothing_runs_on_after_a_failed_build(folders, capsys) -> None:
    run = FakeRunner(build=(1, "error: no nvcc"))
    assert check(folders, run) == 1
    assert len(run.commands) == 1
    shown = capsys.readouterr().out
    assert "error: no nvcc" in shown
    assert "not run: build failed" in shown


def test_time_used_up_is_reported_for_what_did_not_run(folders, capsys) -> None:
    assert check(folders, FakeRunner(), seconds=0.5) == 1
    assert "not run: the 0 s were used up" in capsys.readouterr().out


def test_without_a_gpu_there_is_one_sentence(folders, capsys) -> None:
    run = FakeRunner()
    assert check(folders, run, facts={"name": "", "torch": "2.14.1", "cuda": ""}) == 2
    shown = capsys.readouterr().out
    assert shown == "gpu-check: torch 2.14.1 sees no GPU on this machine: nothing to check\n"
    assert run.commands == []


def test_a_command_that_runs_over_is_ended_with_its_children(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"
    late = tmp_path / "late"
    sleeper = f"import time; time.sleep(2); open({str(late)!r}, 'w')"
    command = [sys.executable, "-c", child.format(sleeper)]
    log = tmp_path / "log"
    assert runner.run_command(command, {}, log, 0.5) == runner.RAN_OVER
    time.sleep(3)
    assert not late.exists()
    part = runner.Part("slow", 1, command, parts.judge_build)
    found, _ = runner.run_part(part, tmp_path, 0.2, runner.run_command)
    assert [row.result for row in found] == ["ran over 0 s"]
    assert not found[0].passed


def test_a_command_that_is_not_there_fails_with_its_name(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert runner.run_command(["no-such-tool"], {}, log, 1) == 127
    assert "no-such-tool" in log.read_text()


def test_a_script_that_dies_keeps_its_rows_and_fails(tmp_path: Path) -> None:
    def run(command: list[str], env: dict[str, str], log: Path, seconds: float) -> int:
        rows.Findings(Path(command[-1])).row("first", "fine", "fine")
        return 1

    found, _ = runner.run_part(runner.Part("script", 9, ["x"]), tmp_path, 9, run)
    assert [(row.part, row.passed) for row in found] == [("first", True), ("script", False)]


def test_nothing_has_to_be_installed() -> None:
    """What the parts import, one through the other, is torch, this package and Python's own."""
    seen: set[Path] = set()
    left = [ROOT / "bench" / "gpu_check.py", *(ROOT / "bench" / "gpu").glob("*.py")]
    imported = set()
    while left:
        path = left.pop()
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            imported |= {name.split(".")[0] for name in names}
            files = {(ROOT / name.replace(".", "/")).with_suffix(".py") for name in names}
            left += [file for file in files - seen if file.is_file()]
    assert ROOT / "bench" / "measure.py" in seen
    # matplotlib is named for the type of an argument alone
    assert imported - sys.stdlib_module_names == {
        *("torch", "fusedstep", "bench", "python", "matplotlib")
    }


@pytest.mark.parametrize(
    ("judge", "status", "log", "judged"),
    [
        ("pytest", 0, "12 passed, 3 skipped in 61.20s (0:01:01)\n", ("12 passed, 3 skipped", True)),
        ("pytest", 1, "== 1 failed, 3 passed in 2.0s ==\n", ("1 failed, 3 passed", False)),
        ("pytest", 0, "5 skipped in 0.10s\n", ("5 skipped", False)),
        ("pytest", 5, "no tests ran in 0.01s\n", ("exit status 5", False)),
        ("sanitizer", 0, "", ("no summary, exit status 0", False)),
        ("sanitizer", 0, "========= ERROR SUMMARY: 0 errors\n", ("ERROR SUMMARY: 0 errors", True)),
        (
            "sanitizer",
            9,
            "========= ERROR SUMMARY: 10 errors\n",
            ("ERROR SUMMARY: 10 errors", False),
        ),
        ("build", 1, "long\nfusedstep: no nvcc\n", ("fusedstep: no nvcc", False)),
    ],
)
def test_output_of_the_tools_is_judged(judge, status, log, judged) -> None:
    assert getattr(parts, f"judge_{judge}")(status, log) == judged


# --- the scripts that are run on the GPU, here with the CPU in its place ---


def test_bits_are_compared_and_one_wrong_bit_is_found(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bitwise, "DEVICES", ("cpu", "cpu"))
    monkeypatch.setattr(bitwise, "SIZES", (0, 1, 257))
    monkeypatch.setattr(sys, "argv", ["bitwise", str(tmp_path / "found.json")])
    bitwise.main()
    found, _ = rows.read(tmp_path / "found.json")
    assert len(found) == len(bitwise.TRIALS) + 1
    assert all(row.passed and row.result.startswith("0 of ") for row in found)
    names = [trial.name for trial in bitwise.TRIALS]
    assert len(set(names)) == len(names)
    rules = {path.stem for path in (ROOT / "kernels" / "optim" / "rules").glob("*.h")}
    tried = {trial.optimizer([torch.zeros(1)])._rule for trial in bitwise.TRIALS}
    # The clip's, that of parameters without a gradient, and one that multiplies matrices.
    assert rules - tried == {"scale", "rest", "muon"}
    assert any(trial.rests for trial in bitwise.TRIALS)

    seen = bitwise.Comparison()
    a = torch.tensor([0.0, math.nan, 1.0])
    seen.same("equal", a, torch.tensor([0.0, -math.nan, 1.0]))
    assert (seen.tensors, seen.elements, seen.differing) == (1, 3, 0)
    seen.same("sign of zero", a, torch.tensor([-0.0, math.nan, 1.0]))
    assert seen.differing == 1


def test_small_set_for_the_sanitizer_runs(monkeypatch, capsys) -> None:
    monkeypatch.setattr(small, "SIZES", (0, 1, 255))
    small.main("cpu")
    told = capsys.readouterr().out
    assert told.count("norm") >= len(small.RUNS)
    assert f"closed form {len(small.SHAPES)} shapes" in told


def test_bytes_of_the_forms_are_those_that_no_step_can_avoid() -> None:
    """Clip + AdamW: the gradient twice; parameter or master, and two states, read and written."""
    bytes_of = {form.name: form.bytes() for form in forms.FORMS}
    assert bytes_of["float32, bfloat16 state"] == 24
    assert bytes_of["bfloat16 alone"] == 16
    assert bytes_of["bfloat16, float32 master"] == 30
    assert bytes_of["bfloat16, remainder"] == 28
    assert 16 < bytes_of["bfloat16, remainder, int8 state"] < 16.2
    assert 14 < bytes_of["bfloat16, correction, int8 state"] < 14.2


def test_timings_become_rows_and_figures(monkeypatch, tmp_path: Path) -> None:
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    recorded: list[dict] = []
    few = Case("billion", "few", ((10, 10),), targets={"adamw": 1e9})
    replacements = {
        "DEVICE": torch.device("cpu"),
        "COPIED": 1 << 16,
        "SECONDS": 0.0,
        "SHORTER": 0.0,
        "QUARTER": Case("quarter", "quarter", ((10,),)),
        "FORM_SAMPLES": 5,
        "HOST_SAMPLES": 10,
        "cuda_seconds": cpu_seconds,
        "GPU_CASES": (few, Case("mlp", "b", ((3,),))),
    }
    for name, value in replacements.items():
        monkeypatch.setattr(timings, name, value)
    monkeypatch.setattr(timings, "append_csv", lambda rows, path: recorded.extend(rows))
    monkeypatch.setattr(sys, "argv", ["timings", str(tmp_path / "found.json")])
    timings.main()
    found, figures = rows.read(tmp_path / "found.json")
    by_part = {row.part: row for row in found}
    assert not by_part["few"].passed  # nothing is 1e9 times as fast
    assert by_part["few: bytes"].target == "92%"
    assert by_part["b"].target == by_part["b"].verdict == ""
    assert by_part["host time of step()"].target == "< 60 us"
    assert by_part["few: bytes"].result.startswith("32 a parameter, ")
    rules = [row["rule"] for row in figures["timings"] if row["case"] == "quarter"]
    assert rules == ["adam", "rmsprop", "sgd", "adagrad", "lion"]
    assert all(f"AdamW, {form.name}: bytes" in by_part for form in forms.FORMS)
    assert recorded == figures["timings"]
    assert [row["case"] for row in recorded[:2]] == ["billion", "mlp"]
    assert figures["copy_bytes_per_second"] > 0


def test_the_closed_form_is_timed_beside_its_bounds(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    never = closed_form.Case("sequences", (3, 70, 40), target=1e9)
    problem = replace(closed_form.NEWTON_CASES[0], tokens=4, vocabulary=30, width=5)
    replacements = {
        "DEVICE": torch.device("cpu"),
        "RATE_SIZE": 64,
        "COPIED": 1 << 16,
        "SECONDS": 0.0,
        "FEW_COLUMNS": 80,
        "PINV_CASES": (never, closed_form.Case("tiny", (3, 4, 6))),
        "LAST_LAYER": closed_form.LeastSquaresCase("few", 500, 30, 8),
        "NEWTON_CASES": (problem,),
    }
    for name, value in replacements.items():
        monkeypatch.setattr(closed_form, name, value)
    monkeypatch.setattr(sys, "argv", ["closed_form", str(tmp_path / "found.json")])
    closed_form.main()
    found, figures = rows.read(tmp_path / "found.json")
    by_part = {row.part: row for row in found}
    assert not by_part["pinv 3x70x40 float32"].passed  # nothing is 1e9 times as fast
    assert "(computed from 2)" in by_part["pinv 3x70x40 float32"].result
    assert by_part["pinv 3x70x40 float32: recipe"].target == "1.5x"
    assert by_part["pinv 3x70x40 float32: error"].passed
    assert by_part["pinv 3x4x6 float32: recipe"].target == ""
    assert by_part["float64 Gram matrix"].target == "60%"
    assert by_part["sums by token"].target == "70%"
    assert set(figures["bounds"]) == {"operations", "bytes"}

    A = torch.randn(2, 9, 5)
    for matrices in (A, A.mT):
        expected = torch.linalg.pinv(matrices)
        assert torch.allclose(closed_form.recipe(matrices), expected, atol=1e-5)
