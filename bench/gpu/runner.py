"""Runs the parts one after another, each with its own time limit and log."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu.rows import Row, read
from bench.record import ROOT

RAN_OVER = 124  # as the command timeout says it
# Takes the command, its environment, the log and a limit in seconds; returns the exit status.
Run = Callable[[list[str], dict[str, str], Path, float], int]
# Takes the exit status and the log's text; returns what the table says and whether it passed.
Judge = Callable[[int, str], tuple[str, bool]]


@dataclass(frozen=True)
class Part:
    """A command. Without a judge it is a script that writes rows to the path added to it."""

    name: str
    seconds: float
    command: list[str]
    judge: Judge | None = None
    target: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    needed: bool = False  # if it fails, nothing after it is meaningful


def run_command(command: list[str], env: dict[str, str], log: Path, seconds: float) -> int:
    """The exit status; RAN_OVER if the command and all it started had to be killed, 127 if there
    is no such command."""
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | env,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        except OSError as error:
            file.write(f"{command[0]}: {error}\n")
            return 127
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return RAN_OVER
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_part(part: Part, folder: Path, seconds: float, run: Run) -> tuple[list[Row], dict]:
    """One part: its rows, and its figures for the results file."""
    log = folder / f"{part.name.replace(' ', '-')}.log"
    found = log.with_suffix(".json")
    found.unlink(missing_ok=True)
    command = part.command if part.judge else [*part.command, str(found)]
    status = run(command, part.environment, log, seconds)
    rows, figures = read(found)
    if part.judge and status != RAN_OVER:
        result, passed = part.judge(status, log.read_text(errors="replace"))
        rows.append(Row(part.name, result, part.target, passed))
    if status == RAN_OVER:
        rows.append(Row(part.name, f"ran over {seconds:.0f} s", "to end in time", False))
    elif status and all(row.passed for row in rows):
        rows.append(Row(part.name, f"exit status {status}: see {log.name}", "0", False))
    return rows, figures


def run_all(
    parts: list[Part],
    folder: Path,
    seconds: float,
    run: Run = run_command,
    report: Callable[[Part, list[Row], dict, float], None] = lambda *_: None,
) -> None:
    """All parts within `seconds`; `report` gets each one's rows, figures and duration."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    reason = ""
    for part in parts:
        at = time.monotonic()
        left = seconds - (at - begin)
        if not reason and left < 1:
            reason = f"not run: the {seconds:.0f} s were used up"
        if reason:
            report(part, [Row(part.name, reason, "to run", False)], {}, 0.0)
            continue
        rows, figures = run_part(part, folder, min(part.seconds, left), run)
        report(part, rows, figures, time.monotonic() - at)
        if part.needed and not all(row.passed for row in rows):
            reason = f"not run: {part.name} failed"
