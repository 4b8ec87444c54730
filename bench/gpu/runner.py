"""Runs the tasks of a stage as processes, each with its own log and limits; nothing waits for ever.

A process writes to a file, which is read as it grows: there is no pipe that could block. What runs
over is asked to end (SIGTERM), killed with all it started (SIGKILL), and then left behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu.rows import BROKEN, Row, parse, parse_check
from bench.record import ROOT

GRACE = 2.0  # seconds between SIGTERM and SIGKILL, and then until a process is left behind
POLL = 0.05
# Takes the exit status and the log's text; makes the rows of what prints none.
Judge = Callable[[int, str], list[Row]]


@dataclass(frozen=True)
class Task:
    """A command: a script of checks, or, with a `judge`, another program."""

    name: str
    command: list[str]
    each: float  # seconds for a check, or for all of another program
    environment: Mapping[str, str] = field(default_factory=dict)
    judge: Judge | None = None


@dataclass(frozen=True)
class Stage:
    """Tasks that belong together, and the seconds they have: 0 for those that are left."""

    name: str
    limit: float
    tasks: list[Task]
    at_once: int = 1  # tasks
    needs: str = ""  # the name of the row without which no later stage can run
    left_out: str = ""  # why there are no tasks


class Process:
    """A task while it runs, restarted after a check that it did not survive."""

    def __init__(self, task: Task, log: Path, tell: Callable[[str], None]) -> None:
        self.task, self.over = task, False
        self._log, self._tell = log, tell
        self._read_to, self._rows, self._stopped = 0, 0, 0.0
        self._reason = ""  # why it was stopped
        log.write_bytes(b"")
        self._start(done=0)

    def _start(self, done: int) -> None:
        self._began = time.monotonic()
        self._done, self._check, self._name = done, done - 1, self.task.name
        more = [] if self.task.judge or not done else ["--done", str(done)]
        with self._log.open("ab") as file:
            self._process = subprocess.Popen(
                [*self.task.command, *more],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.task.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # A group to be killed, in this session: a new session would outlive a machine's
                # own limit for the whole call.
                preexec_fn=os.setpgrp,
            )

    def poll(self) -> list[Row]:
        """The rows since the last time; `over` once there will be no more."""
        status = self._process.poll()
        rows = self._new_rows(last=status is not None)
        late = time.monotonic() - self._began
        if status is not None:
            self._signal(signal.SIGKILL)  # what it may have left
            rows += self._ended(status)
        elif self._reason:
            since = time.monotonic() - self._stopped
            if since > GRACE:
                self._signal(signal.SIGKILL)
            if since > 2 * GRACE:
                self.over = True
                rows.append(Row(self._name, "cannot be killed", "to end in time", False))
        elif late > self.task.each:
            self.stop(f"ran over {self.task.each:.0f} s")
        return rows

    def stop(self, reason: str) -> None:
        """Asks the process to end, once."""
        if not self._reason:
            self._reason, self._stopped = reason, time.monotonic()
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _new_rows(self, last: bool) -> list[Row]:
        """Reads what the log has grown by, up to the end of a line."""
        with self._log.open("rb") as file:
            file.seek(self._read_to)
            new = file.read()
        whole = len(new) if last else new.rfind(b"\n") + 1
        self._read_to += whole
        rows = []
        for line in new[:whole].decode(errors="replace").splitlines():
            self._tell(f"[{self.task.name}] {line}")
            row, begun = parse(line), parse_check(line)
            if row:
                rows.append(row)
                self._rows += 1
            if begun:
                self._check, self._name = begun
                self._began = time.monotonic()
        return rows

    def _ended(self, status: int) -> list[Row]:
        stopped, self._reason = self._reason, ""
        rows = [Row(self._name, stopped, "to end in time", False)] if stopped else []
        if self.task.judge:
            self.over = True
            return [*self._judged(self.task.judge, status), *rows]
        out_of_time = bool(stopped) and not stopped.startswith("ran over")
        done = status == 0 and not stopped
        self.over = done or out_of_time or self._check < self._done
        if not (stopped or status in (0, BROKEN)):
            rows = [Row(self._name, described(status), "exit status 0", False)]
        elif self.over and not (stopped or self._rows):
            rows = [Row(self.task.name, f"no row, {described(status)}", "rows", False)]
        if not self.over:
            self._start(self._check + 1)
        return rows

    def _judged(self, judge: Judge, status: int) -> list[Row]:
        """What the judge says; output that it does not understand must not end the run."""
        try:
            return judge(status, self._log.read_text(errors="replace"))
        except Exception as error:
            told = f"{type(error).__name__}: {error}".split("\n")[0]
            return [Row(self.task.name, f"not understood: {told[:200]}", "rows", False)]


def described(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def file_name(name: str) -> str:
    """A name with nothing in it that a path cannot have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def run_stage(
    stage: Stage,
    limit: float,
    folder: Path,
    take: Callable[[Row], None],
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Runs all tasks within `limit` seconds. `take` gets each row at once, `tell` each log line."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + limit
    waiting, running = deque(stage.tasks), list[Process]()
    used_up = f"the stage's {limit:.0f} s were used up"
    try:
        while waiting or running:
            late = time.monotonic() > end
            while waiting and (late or len(running) < stage.at_once):
                task = waiting.popleft()
                if late:
                    take(Row(task.name, f"not run: {used_up}", "to run", False))
                    continue
                try:
                    log = folder / f"{file_name(f'{stage.name}-{task.name}')}.log"
                    running.append(Process(task, log, tell))
                except OSError as error:
                    take(Row(task.name, f"cannot start: {error}", "to run", False))
            for process in running:
                if late:
                    process.stop(used_up)
                for row in process.poll():
                    take(row)
            running = [process for process in running if not process.over]
            time.sleep(POLL)
    finally:
        for process in running:
            process.kill()
