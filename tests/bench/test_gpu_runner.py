"""The runner of gpu-check: rows survive crashes, hangs, lost CUDA contexts; no endless wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

from bench.gpu import checks, runner
from bench.gpu.results import Results
from bench.gpu.rows import BROKEN, Row, parse, parse_check
from bench.gpu.runner import Stage, Task, run_stage
from bench.record import ROOT

PATH = {"PYTHONPATH": os.pathsep.join([str(ROOT / "python"), str(ROOT)])}
# A script of checks without torch's import: the same lines in the log.
SCRIPT = """
import os, sys, time, signal
done = int(sys.argv[sys.argv.index("--done") + 1]) if "--done" in sys.argv else 0
def row(name, passed=True):
    print('row: {"name": "%s", "result": "r", "target": "t", "passed": %s}'
          % (name, "true" if passed else "false"), flush=True)
CHECKS = []
for number, (name, check) in enumerate(CHECKS):
    if number >= done:
        print(f"check: {number} {name}", flush=True)
        check()
"""


def script(text: str) -> list[str]:
    return [sys.executable, "-c", SCRIPT.replace("[]", textwrap.dedent(text).strip())]


def run(stage: Stage, folder: Path, limit: float | None = None) -> list[Row]:
    rows: list[Row] = []
    run_stage(stage, limit or stage.limit, folder, rows.append)
    return rows


def told(rows: list[Row]) -> list[tuple[str, bool | None]]:
    return [(row.name, row.passed) for row in rows]


def test_rows_after_a_crash_and_a_lost_context_are_not_lost(tmp_path: Path) -> None:
    checks = """[
        ("a", lambda: row("a")),
        ("dies", lambda: os.kill(os.getpid(), signal.SIGSEGV)),
        ("b", lambda: row("b")),
        ("breaks", lambda: (row("breaks", False), os._exit(3))),
        ("c", lambda: (row("c"), row("d"))),
        ("leaves", lambda: os._exit(7)),
    ]"""
    rows = run(Stage("s", 20, [Task("t", script(checks), 10)]), tmp_path)
    expected = [("a", True), ("dies", False), ("b", True), ("breaks", False)]
    assert told(rows) == [*expected, ("c", True), ("d", True), ("leaves", False)]
    assert rows[1].result == "killed by SIGSEGV"
    assert rows[-1].result == "exit status 7"


def test_a_check_that_hangs_loses_only_itself(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.2)
    deaf = "(signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(60))"
    checks = f"""[("hangs", lambda: {deaf}), ("after", lambda: row("after"))]"""
    begin = time.monotonic()
    rows = run(Stage("s", 20, [Task("t", script(checks), 1.0)]), tmp_path)
    assert told(rows) == [("hangs", False), ("after", True)]
    assert rows[0].result == "ran over 1 s"
    assert time.monotonic() - begin < 10


def test_a_stage_ends_in_time_and_names_what_did_not_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.2)
    checks = """[("quick", lambda: row("quick")), ("long", lambda: time.sleep(60))]"""
    tasks = [Task(name, script(checks), 30) for name in ("first", "second")]
    begin = time.monotonic()
    rows = run(Stage("s", 1.5, tasks), tmp_path)
    assert time.monotonic() - begin < 6
    assert told(rows) == [("quick", True), ("second", False), ("long", False)] or told(rows) == [
        ("quick", True),
        ("long", False),
        ("second", False),
    ]
    assert any("were used up" in row.result for row in rows)


def test_a_stopped_task_takes_its_children_with_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.2)
    late = tmp_path / "late"
    child = f"import time; time.sleep(2); open({str(late)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    task = Task("parent", [sys.executable, "-c", parent], 0.5, judge=lambda status, log: [])
    rows = run(Stage("s", 5, [task]), tmp_path)
    assert told(rows) == [("parent", False)]
    time.sleep(2.5)
    assert not late.exists()


def test_children_that_keep_the_output_open_block_nothing(tmp_path: Path) -> None:
    child = "[sys.executable, '-c', 'import time; time.sleep(30)']"
    parent = f"import subprocess, sys; subprocess.Popen({child})"
    task = Task(
        "parent", [sys.executable, "-c", parent], 20, judge=lambda s, log: [Row("x", str(s))]
    )
    begin = time.monotonic()
    assert [row.result for row in run(Stage("s", 20, [task]), tmp_path)] == ["0"]
    assert time.monotonic() - begin < 10


def test_what_cannot_start_and_what_says_nothing_fails(tmp_path: Path) -> None:
    tasks = [Task("absent", ["no-such-tool"], 5), Task("silent", [sys.executable, "-c", ""], 5)]
    rows = run(Stage("s", 20, tasks), tmp_path)
    assert told(rows) == [("absent", False), ("silent", False)]
    assert "no-such-tool" in rows[0].result


def test_tasks_run_side_by_side_each_with_a_live_log(tmp_path: Path) -> None:
    checks = """[("c", lambda: (print("before", flush=True), time.sleep(1), row("c")))]"""
    stage = Stage("s", 20, [Task(str(i), script(checks), 9) for i in range(4)], at_once=4)
    lines: list[str] = []
    rows: list[Row] = []
    begin = time.monotonic()
    run_stage(stage, 20, tmp_path, rows.append, lines.append)
    assert time.monotonic() - begin < 4
    assert len(rows) == 4
    # What was printed at first was told before the first process had ended.
    assert [line.split("] ")[1] for line in lines[:8]].count("before") >= 1
    assert "before" in (tmp_path / "s-0.log").read_text()


def test_a_judge_makes_the_rows_of_another_program(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('out'); raise SystemExit(4)"]
    task = Task("t", command, 9, judge=lambda status, log: [Row(log.strip(), str(status))])
    assert run(Stage("s", 20, [task]), tmp_path) == [Row("out", "4")]


def test_output_that_no_judge_understands_ends_nothing(tmp_path: Path) -> None:
    tasks = [
        Task("odd", [sys.executable, "-c", ""], 9, judge=lambda status, log: [][0]),
        Task("t", [sys.executable, "-c", ""], 9, judge=lambda status, log: [Row("n", "fine")]),
    ]
    odd, fine = run(Stage("s", 20, tasks), tmp_path)
    assert (odd.name, odd.passed) == ("odd", False)
    assert odd.result == "not understood: IndexError: list index out of range"
    assert fine == Row("n", "fine")


def test_numbers_that_json_lacks_and_lines_cut_off_do_no_harm(tmp_path: Path) -> None:
    row = parse('row: {"name": "n", "result": "r", "figures": {"x": NaN}}')
    assert row == Row("n", "r", figures={"x": "NaN"})
    results = Results(tmp_path / "r.json", {}, None)
    results.take("s", row)
    assert json.loads((tmp_path / "r.json").read_text())["stages"]["s"]["rows"]
    for line in ("row: {", "row: []", 'row: {"other": 1}', "anything"):
        assert parse(line) is None


def test_results_are_whole_after_every_row_and_copied(tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    results = Results(tmp_path / "made" / "r.json", {"gpu": "G"}, tmp_path / "out")
    for passed in (None, True, False):
        results.take("s", Row("n", "r", "t", passed))
        kept = json.loads((tmp_path / "made" / "r.json").read_text())
        assert kept["passed"] is (passed is not False)
        assert (tmp_path / "out" / "r.json").read_text() == (
            tmp_path / "made" / "r.json"
        ).read_text()
    results.end("s", 1.26)
    kept = json.loads((tmp_path / "made" / "r.json").read_text())
    assert (kept["gpu"], kept["stages"]["s"]["seconds"]) == ("G", 1.3)
    assert len(kept["stages"]["s"]["rows"]) == 3
    assert "FAIL" in capsys.readouterr().out


def test_a_disk_that_refuses_does_not_end_the_run(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    Results(tmp_path / "file" / "r.json", {}, None).take("s", Row("n", "r"))
    assert "r.json" in capsys.readouterr().err


def test_checks_go_on_after_an_exception(capsys) -> None:
    def fails() -> None:
        raise ValueError("odd\nlines")

    shown = checks.Reporter("full")
    some = [
        ("a", partial(shown.row, "a", "fine")),
        ("b", fails),
        ("c", partial(shown.row, "c", "x")),
    ]
    checks.run(some, checks.options([]))
    rows = [row for line in capsys.readouterr().out.split("\n") if (row := parse(line))]
    assert told(rows) == [("a", None), ("b", False), ("c", None)]
    assert rows[1].result == "ValueError: odd"
    checks.run(some, checks.options(["--share", "1/2"]))
    checks.run(some, checks.options(["--done", "2"]))
    lines = capsys.readouterr().out.split("\n")
    assert [line for line in lines if line.startswith("check: ")] == ["check: 0 b", "check: 2 c"]


def test_a_lost_context_ends_the_process_after_its_row(capfd) -> None:
    code = """
import torch
from bench.gpu import checks
def lost(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
torch.cuda.is_available = lambda: True
torch.cuda.synchronize = lost
checks.run([("a", lost), ("b", print)], checks.options([]))
"""
    environment = os.environ | PATH
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == BROKEN
    assert parse(result.stdout.split("\n")[1]).result.startswith("RuntimeError: CUDA error")
    assert parse_check(result.stdout.split("\n")[0]) == (0, "a")


def test_how_fast_something_is_counts_only_on_a_gpu(capsys) -> None:
    for scale, passed in (("full", False), ("host", None)):
        checks.Reporter(scale).fast("n", "r", "2x", False)
        assert parse(capsys.readouterr().out.strip()).passed is passed


def test_ending_the_program_ends_what_it_runs(tmp_path: Path) -> None:
    late = tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    code = f"""
import signal, sys
from bench.gpu.runner import Stage, Task, run_stage
from bench.gpu_check import end
from pathlib import Path
signal.signal(signal.SIGTERM, end)
task = Task("t", [sys.executable, "-c", {child!r}], 9)
print("begins", flush=True)
run_stage(Stage("s", 9, [task]), 9, Path({str(tmp_path)!r}), print)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=os.environ | PATH, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begins\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
    time.sleep(3.5)
    assert not late.exists()
