"""make gpu-check without a GPU: its stages and limits, how output is read, what is kept."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from bench import gpu_check
from bench.gpu import (
    bitwise,
    build,
    closed_form,
    families,
    forms,
    graphs,
    probe,
    smoke,
    stages,
    suite,
    timings,
    tools,
)
from bench.gpu.checks import Reporter, options
from bench.gpu.compare import differing
from bench.gpu.rows import Row, parse
from bench.gpu.runner import Stage, Task
from bench.record import ROOT
from fusedstep import _C
from python.buildtools.facts import fingerprint

REAL, REHEARSED = stages.Plan(ROOT), stages.Plan(ROOT, rehearse=True)
QUICK = stages.Plan(ROOT, rehearse=True, quick=True)


def rows_of(printed: str) -> dict[str, Row]:
    rows = [row for line in printed.split("\n") if (row := parse(line))]
    return {row.name: row for row in rows}


# --- the plan ---


@pytest.fixture
def tools_are_there(monkeypatch) -> None:
    monkeypatch.setattr(stages, "find_tool", lambda name: f"/tools/{name}")


@pytest.mark.usefixtures("tools_are_there")
@pytest.mark.parametrize("call", [1, 2])
def test_the_limits_add_up_to_the_calls(call: int) -> None:
    every = stages.calls(REAL, built=True)[call]
    assert sum(stage.limit for stage in every) == stages.LIMITS[call]
    # What is left, if anything, is for the last one.
    assert [stage.name for stage in every if not stage.limit] == (
        [] if call == 1 else ["initcheck"]
    )
    for stage in every:
        assert all(0 < task.each <= max(stage.limit, 150) for task in stage.tasks)


@pytest.mark.usefixtures("tools_are_there")
def test_what_each_call_runs() -> None:
    first, second = stages.calls(REAL, built=True).values()
    names = ["probe", "build", "smoke", "timings", "bitwise", "graphs", "closed_form"]
    assert [stage.name for stage in first] == names
    names = ["build", "GPU tests", "memcheck", "racecheck", "ncu", "initcheck"]
    assert [stage.name for stage in second] == names
    assert len(first[2].tasks) == stages.FAMILIES == len(families.FAMILIES)
    memcheck = second[2].tasks
    assert len(memcheck) == stages.OURS == families.OURS
    assert memcheck[0].command[:6] == [
        *("/tools/compute-sanitizer", *tools.SANITIZER, "memcheck", sys.executable)
    ]
    assert memcheck[0].environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert families.FAMILIES[-1].name == "solvers"
    assert stages.calls(REAL, built=False)[2][0].limit > 10


@pytest.mark.usefixtures("tools_are_there")
def test_the_page_has_the_stages_and_their_seconds() -> None:
    page = (ROOT / "bench" / "gpu" / "README.md").read_text()
    shown = re.findall(r"^\| (\w[\w ]*) \| (\d+|what is left) \|", page, re.M)
    every = [stage for call in stages.calls(REAL, built=True).values() for stage in call]
    assert shown == [(stage.name, str(stage.limit or "what is left")) for stage in every]


def test_tools_that_are_absent_are_left_out_and_nothing_fails(
    monkeypatch, tmp_path, capsys
) -> None:
    monkeypatch.setattr(stages, "find_tool", lambda name: "")
    second = stages.calls(REAL, built=True)[2]
    absent = [stage for stage in second if stage.left_out]
    assert [stage.name for stage in absent] == ["memcheck", "racecheck", "ncu", "initcheck"]
    results = gpu_check.Results(tmp_path / "r.json", {}, None)
    assert gpu_check.run_stages(absent, 9, tmp_path, results, None) == 0
    assert "left out: compute-sanitizer is absent" in capsys.readouterr().out


@pytest.mark.parametrize("plan", [REHEARSED, QUICK])
def test_a_rehearsal_runs_every_stage_through_its_stand_in(plan: stages.Plan) -> None:
    for real, rehearsed in zip(
        stages.calls(REAL, built=True).values(),
        stages.calls(plan, built=True).values(),
        strict=True,
    ):
        names = [stage.name for stage in real if stage.name != "initcheck"]
        assert sorted(stage.name for stage in rehearsed) == sorted(names)
        for task in (task for stage in rehearsed for task in stage.tasks):
            assert task.command[:3] == [sys.executable, "-m", "bench.gpu.rehearsal"]
    assert len([t for s in stages.calls(QUICK, built=True)[2] for t in s.tasks]) < 10


@pytest.mark.slow
def test_every_file_with_gpu_tests_is_run() -> None:
    """And those of linear algebra first, which take longest."""
    files = suite.files(ROOT)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "tests"]
    environment = {**os.environ, **REAL.environment(1)}
    collected = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = {ROOT / line.split("::")[0] for line in collected.stdout.split("\n") if "::" in line}
    assert len(found) > 10
    assert found <= set(files)
    assert [p for p in files if "linalg" in p.parts] == files[
        : sum("linalg" in p.parts for p in files)
    ]
    assert all((ROOT / name) in found for name in suite.BRIEF)


def test_no_gpu_test_needs_what_the_machine_lacks() -> None:
    """A test file may import more only behind importorskip."""
    there = sys.stdlib_module_names | {"bench", "fusedstep", "python", "tests", "setup"}
    there |= {"torch", "numpy", "pytest", "hypothesis", "scipy", "mpmath", "ml_dtypes"}
    for path in suite.files(ROOT):
        text = path.read_text()
        if "importorskip" not in text:
            assert imported_by(path) - there == set(), path
            assert "torch.testing._internal" not in text


# --- the program ---


def stage_of(name: str, *rows: Row, **more: str) -> Stage:
    task = Task(name, [sys.executable, "-c", ""], 9, judge=lambda status, log: list(rows))
    return Stage(name, 9, [task], **more)


def run_stages(some: list[Stage], folder: Path, limit: float = 30) -> tuple[int, dict]:
    results = gpu_check.Results(folder / "r.json", {"gpu": "G"}, folder / "out")
    status = gpu_check.run_stages(some, limit, folder / "call-1", results, folder / "out")
    return status, json.loads((folder / "out" / "r.json").read_text())


def test_a_failing_stage_does_not_stop_the_next(tmp_path: Path) -> None:
    some = [stage_of("a", Row("x", "bad", "good", False)), stage_of("b", Row("y", "fine"))]
    status, kept = run_stages(some, tmp_path)
    assert status == 1
    assert kept["passed"] is False
    assert [list(stage["rows"]) for stage in kept["stages"].values()] != [[], []]
    assert set(kept["stages"]) == {"a", "b"}
    assert (tmp_path / "out" / "all-call-1.log").read_text() == "== a\n== b\n"


@pytest.mark.parametrize(("name", "status"), [("GPU", 2), ("build", 1)])
def test_nothing_runs_on_without_what_it_needs(tmp_path: Path, name: str, status: int) -> None:
    first = stage_of("first", Row(name, "none", "there", False), needs=name)
    found, kept = run_stages([first, stage_of("second", Row("y", "fine"))], tmp_path)
    assert found == status
    assert set(kept["stages"]) == {"first"}


def test_stages_that_find_no_time_are_named(tmp_path: Path) -> None:
    status, kept = run_stages([stage_of("a", Row("x", "fine"))], tmp_path, limit=0.5)
    assert status == 0
    assert kept["stages"]["a"]["rows"][0]["result"] == "left out: the 0 s were used up"


def test_a_machine_without_a_gpu_gets_one_sentence(monkeypatch, tmp_path: Path, capsys) -> None:
    """Of all of the program, with the real probe."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--call", "1"])
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "run_call", real_call(tmp_path))
    monkeypatch.delenv("OUT", raising=False)
    assert gpu_check.main() == 2
    shown = capsys.readouterr().out
    assert f"torch {torch.__version__} sees no GPU on this machine; nothing else can run" in shown
    kept = json.loads((tmp_path / "gpu-unknown-call-1.json").read_text())
    names = [row["name"] for row in kept["stages"]["probe"]["rows"]]
    assert names[:2] == ["Python", "Python.h"]
    assert names[-1] == "GPU"


def real_call(folder: Path):
    """Of this tree, but with its logs in `folder`."""
    real = gpu_check.run_call
    return lambda call, plan, results, copies: real(call, stages.Plan(ROOT), results, copies)


# --- what is read ---


def judged(rows: list[Row]) -> list[tuple[str, bool | None]]:
    return [(row.result, row.passed) for row in rows]


@pytest.mark.parametrize(
    ("status", "log", "expected"),
    [
        (0, "12 passed, 3 skipped in 61.20s (0:01:01)\n", [("12 passed, 3 skipped", True)]),
        (
            1,
            "tests/a.py::test_x[1, 2] FAILED [ 9%]\n== 1 failed, 3 passed in 2.0s ==\n",
            [("1 failed, 3 passed: test_x[1, 2]", False)],
        ),
        (0, "5 skipped in 0.10s\n", [("5 skipped", False)]),
        (5, "no tests ran in 0.01s\n", []),
        (
            -9,
            "tests/a.py::test_x PASSED [ 9%]\ntests/a.py::test_y \nFatal Python error\n",
            [("1 passed, 0 failed, exit status -9", False)],
        ),
        (
            5,
            "SKIPPED [1] tests/a.py:20: could not import 'b': No module named 'b'\n",
            [("left out: could not import 'b': No module named 'b'", None)],
        ),
        (
            1,
            "tests/a.py::test_x FAILED [ 9%]\nSKIPPED [1] tests/a.py:20: could not import 'b'\n"
            "== 1 failed, 1 skipped in 2.0s ==\n",
            [("1 failed, 1 skipped: test_x", False)],
        ),
    ],
)
def test_what_pytest_says(status: int, log: str, expected: list) -> None:
    assert judged(suite.judge("name", status, log)) == expected


@pytest.mark.parametrize(
    ("status", "log", "expected"),
    [
        (0, "", ("no summary, exit status 0", False)),
        (0, "========= ERROR SUMMARY: 0 errors\n", ("ERROR SUMMARY: 0 errors", True)),
        (9, "========= ERROR SUMMARY: 10 errors\n", ("ERROR SUMMARY: 10 errors", False)),
        (
            9,
            "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n",
            ("RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", False),
        ),
        (
            1,
            "========= Error: Device not supported. Exit\n",
            ("left out: Device not supported. Exit", None),
        ),
    ],
)
def test_what_the_sanitizer_says(status: int, log: str, expected: tuple) -> None:
    assert judged(tools.judge_sanitizer("memcheck", status, log)) == [expected]


def test_what_ncu_says() -> None:
    heading = '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
    values = {
        tools.SECONDS: "1,000,000",
        tools.BYTES: "4,000,000,000",
        tools.SHARE: "83.4",
        tools.INSTRUCTIONS: "12,500",
        tools.REGISTERS: "62",
        tools.WARPS: "37.2",
        tools.WRITTEN: "7",
    }
    lines = [f'"0","9","norm_kernel(Table, int)","{m}","u","{v}"' for m, v in values.items()]
    log = "\n".join(["==PROF== Connected", heading, *lines, "==PROF== Disconnected"])
    (row,) = tools.judge_ncu(0, log)
    assert row.name == "norm_kernel"
    assert row.result.startswith("1 ms, 4000 GB/s (83 % of the peak), 1.25e+04 instructions")
    assert row.passed is None
    unknown = log.replace('"4,000,000,000"', '"n/a"').replace('"7"', '"nan"')
    (row,) = tools.judge_ncu(0, unknown)
    assert row.result.startswith("1 ms, nan GB/s (83 % of the peak)")
    assert set(row.figures) == set(tools.METRICS) - {tools.BYTES, tools.WRITTEN}
    refused = "==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n"
    assert tools.judge_ncu(1, refused)[0].result == f"left out: {refused[10:-1]}"


# --- the scripts, here with the CPU on both sides; bench.gpu.rehearsal runs them in full ---


def test_one_wrong_bit_is_found(monkeypatch, capsys) -> None:
    a = torch.tensor([0.0, math.nan, 1.0])
    assert not differing(a, torch.tensor([0.0, -math.nan, 1.0])).any()
    assert differing(a, torch.tensor([-0.0, math.nan, 1.0])).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="compared with"):
        differing(a, a.double())
    assert not smoke.far_apart(a[[0, 2]], torch.tensor([1e-9, 1.0]), 1e-8)
    assert smoke.far_apart(a[[0, 2]], torch.tensor([1e-7, 1.0]), 1e-8)
    assert smoke.far_apart(a[[0, 2]], torch.tensor([0.0, math.nan]), 1e-8)

    sides = iter(([("x", a)], [("x", a + 1)]))
    smoke.compare(families.Family("f", lambda *_: next(sides)), Reporter("full"))
    assert rows_of(capsys.readouterr().out)["f"].passed is False
    smoke.compare(families.Family("none", lambda *_: iter(())), Reporter("full"))
    assert rows_of(capsys.readouterr().out)["none"].passed is False


def test_every_family_and_trial_has_equal_sides(monkeypatch, capsys) -> None:
    monkeypatch.setattr(smoke, "DEVICE", "cpu")
    monkeypatch.setattr(bitwise, "DEVICES", ("cpu", "cpu"))
    for script in (smoke, bitwise):
        monkeypatch.setattr(sys, "argv", ["script", "--scale", "quick"])
        script.main()
    rows = rows_of(capsys.readouterr().out)
    assert [row for row in rows.values() if not row.passed] == []
    assert {family.name for family in families.FAMILIES} <= set(rows)
    names = [trial.name for trial in bitwise.TRIALS]
    assert len(set(names)) == len(names)
    assert set(names[::5]) <= set(rows)
    rules = {path.stem for path in (ROOT / "kernels" / "optim" / "rules").glob("*.h")}
    tried = {trial.optimizer([torch.zeros(1)])._rule for trial in bitwise.TRIALS}
    # The clip's, that of parameters without a gradient, and one that multiplies matrices.
    assert rules - tried == {"scale", "rest", "muon"}
    assert any(trial.rests for trial in bitwise.TRIALS)


def test_bytes_of_the_forms_are_those_that_no_step_can_avoid() -> None:
    """Clip + AdamW: the gradient twice; parameter or master, and two states, read and written."""
    bytes_of = {form.name: form.bytes() for form in forms.FORMS}
    assert bytes_of["float32, bfloat16 state"] == 24
    assert bytes_of["bfloat16 alone"] == 16
    assert bytes_of["bfloat16, float32 master"] == 30
    assert bytes_of["bfloat16, remainder"] == 28
    assert 16 < bytes_of["bfloat16, remainder, int8 state"] < 16.2
    assert 14 < bytes_of["bfloat16, correction, int8 state"] < 14.2


def test_timings_and_the_closed_form_report_every_check(monkeypatch, capsys) -> None:
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for script in (timings, closed_form):
        monkeypatch.setattr(script, "DEVICE", torch.device("cpu"))
    timed = timings.Timings(Reporter("host"))
    for _, check in timed.checks():
        check()
    rows = rows_of(capsys.readouterr().out)
    assert list(rows)[:2] == ["copy", "1e9 parameters"]
    assert list(rows)[3:11] == [form.name for form in forms.FORMS]
    assert "Lion, ratio" in rows
    assert all(row.passed is None for row in rows.values())
    solved = closed_form.ClosedForm(Reporter("host"))
    for _, check in solved.checks():
        check()
    rows = rows_of(capsys.readouterr().out)
    ours = [name for name in rows if name.startswith("pinv") and ":" not in name]
    assert len(ours) >= 5
    assert max(map(list(rows).index, ours)) < list(rows).index("least squares: torch")
    assert any(name.endswith("Gram + eigh") for name in rows)


def test_torch_never_gets_a_batch_that_it_refuses(monkeypatch, capsys) -> None:
    """XsyevBatched refuses 32768 matrices, to which torch passes whatever it is given."""
    for case in closed_form.PINV_PROBLEMS:
        few = closed_form.few_of(torch.empty(case.shape, device="meta"))
        assert 2 <= len(few) <= 4096
        assert min(case.shape[-2:]) <= 32 or len(few) <= 8


def test_the_recipe_is_an_inverse() -> None:
    A = torch.randn(2, 9, 5)
    for matrices in (A, A.mT):
        expected = torch.linalg.pinv(matrices)
        assert torch.allclose(closed_form.recipe(matrices), expected, atol=1e-5)


def test_a_gpu_is_asked_of_torch_for_the_aims(capsys) -> None:
    never = timings.Case("billion", "few", ((10,),), targets={"adamw": 1e9})
    for scale, passed in (("full", False), ("host", None)):
        report = timings.Timings(Reporter(scale))
        report.__dict__["bandwidth"] = 1.0
        report.share("few", 1.0, 0.5, 0.92)
        assert rows_of(capsys.readouterr().out)["few"].passed is passed
    assert never.targets


def test_the_modules_that_are_there_are_built_from_this_tree(monkeypatch, capsys) -> None:
    reason = build.lack()
    assert reason == "" or "left out of this build" in reason or "left alone" in reason
    monkeypatch.setattr(build, "fingerprint", lambda root: "other")
    monkeypatch.setattr(build, "LOAD", "print('', 'ours', sep='|')")
    assert build.lack() == "built from other sources"
    monkeypatch.setattr(build, "LOAD", "raise ImportError('no module')")
    assert build.lack() == "ImportError: no module"


def test_modules_of_other_sources_or_for_another_python_are_made_anew(tmp_path: Path) -> None:
    """The second call then has the time to build them."""
    package, source = tmp_path / "python" / "fusedstep", tmp_path / "kernels" / "a.h"
    for folder in (package, source.parent):
        folder.mkdir(parents=True)
    source.write_text("first")
    suffix, facts = sysconfig.get_config_var("EXT_SUFFIX"), fingerprint(tmp_path).encode()
    cpu, cuda = (package / f"{name}{suffix}" for name in ("_C", "_C_cuda"))
    cpu.write_bytes(b"code" + facts)
    (package / "_C_cuda.cpython-29-other.so").write_bytes(facts)
    assert not build.are_there(tmp_path)
    cuda.write_bytes(facts + b"code")
    assert build.are_there(tmp_path)
    source.write_text("second")
    assert not build.are_there(tmp_path)


def test_a_module_holds_the_fingerprint_of_its_sources() -> None:
    assert _C.build_facts()["sources"].encode() in Path(_C.__file__).read_bytes()


def test_ninjas_log_names_the_slowest(tmp_path: Path) -> None:
    log = tmp_path / ".ninja_log"
    log.write_text("# ninja log v5\n0\t2000\t1\t/x/a.o\tff\n0\t31000\t1\t/x/b.o\tff\n")
    assert build.slowest([log, tmp_path / "none"]) == "b 31 s, a 2 s"


def test_the_probe_goes_on_after_what_it_cannot_find(monkeypatch, capsys) -> None:
    def breaks() -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(probe, "compilers", breaks)
    monkeypatch.setenv("PATH", "/nowhere")
    probe.main()
    rows = rows_of(capsys.readouterr().out)
    assert rows["breaks"].result == "OSError: no such thing"
    assert rows["Python"].passed
    assert rows["ncu"].passed is None
    assert "GPU" in rows


def test_every_graph_check_is_asked_for_its_count(monkeypatch, capsys) -> None:
    some = (("a", lambda: 0, "waits", 0), ("b", lambda: 3, graphs.LAUNCHES, 2))
    monkeypatch.setattr(graphs, "CHECKS", some)
    monkeypatch.setattr(sys, "argv", ["graphs"])
    graphs.main()
    rows = rows_of(capsys.readouterr().out)
    assert (rows["a"].passed, rows["b"].passed) == (True, False)
    assert rows["b"].result == "3 kernels launched"


# --- what has to be installed ---


def imported_by(path: Path) -> set[str]:
    """The packages that a file imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.split(".")[0] for name in names}


def test_nothing_has_to_be_installed() -> None:
    """What the stages import, one through the other, is torch, this package and Python's own."""
    seen: set[Path] = set()
    left = [ROOT / "bench" / "gpu_check.py", *(ROOT / "bench" / "gpu").glob("*.py")]
    left = [path for path in left if path.name not in ("rehearsal.py", "host_cuda.py")]
    imported = set()
    while left:
        path = left.pop()
        seen.add(path)
        imported |= imported_by(path)
        names = re.findall(r"^(?:from|import) ([\w.]+)(?: import (.*))?", path.read_text(), re.M)
        for module, what in names:
            dotted = [module, *(f"{module}.{name.strip()}" for name in what.split(","))]
            files = {(ROOT / name.replace(".", "/")).with_suffix(".py") for name in dotted}
            left += [file for file in files - seen if file.is_file()]
    assert ROOT / "bench" / "measure.py" in seen
    # matplotlib is named for the type of an argument alone
    assert imported - sys.stdlib_module_names == {
        *("torch", "fusedstep", "bench", "python", "matplotlib")
    }


def test_scales_and_shares_are_arguments() -> None:
    asked = options(["--scale", "quick", "--share", "2/10", "--done", "1"])
    assert (asked.scale, asked.share, asked.done) == ("quick", "2/10", 1)
