"""What is seen while a study runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from bench.command import Interruption


def wide_console() -> Console:
    """Prints what it is given as it is; a log file need not wrap."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 140)
    return console


class Stopped(Exception):
    """Ctrl-C was seen between two steps of a stage."""


class Stages:
    """A bar for each stage, or a line each without a terminal; Ctrl-C ends them by Stopped."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._interruption = Interruption()
        self._bars = Progress(
            TextColumn("{task.description:<42}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]:>24}"),
            console=console,
            expand=True,
        )

    def __enter__(self) -> Stages:
        self._interruption.__enter__()
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        self._interruption.__exit__()

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """A stage of `total` steps; it may end early."""
        start = time.perf_counter()
        stage = Stage(self._bars, self._bars.add_task(name, total=total, note=""), self)
        self.look()
        yield stage
        self._bars.update(stage.task, total=max(1, stage.done), completed=max(1, stage.done))
        if not self._console.is_terminal:
            seconds = time.perf_counter() - start
            self._console.print(f"{name}: {seconds:.1f} s  {stage.note}".rstrip(), soft_wrap=True)

    def look(self) -> None:
        """Raises Stopped after Ctrl-C."""
        if self._interruption.requested:
            raise Stopped


class Stage:
    """One bar, and a note of a few words next to it."""

    def __init__(self, bars: Progress, task: TaskID, stages: Stages) -> None:
        self._bars, self.task, self._stages = bars, task, stages
        self.done, self.note = 0, ""

    def step(self, note: str | None = None) -> None:
        """One more step is done; raises Stopped after Ctrl-C."""
        self.done += 1
        self.note = self.note if note is None else note
        self._bars.update(self.task, completed=self.done, note=self.note)
        self._stages.look()
