"""The results file: valid JSON at any moment, with every row there has been so far."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from bench.gpu.rows import Row
from bench.record import text_table, write_json


class Results:
    """Writes each row as it comes: a machine may be taken away before the end."""

    def __init__(self, path: Path, facts: Mapping[str, object], copies: Path | None) -> None:
        self.rows: list[tuple[str, Row]] = []
        self._path, self._copies = path, copies
        self._begin = time.monotonic()
        self._stages: dict[str, dict] = {}
        self._all = {**facts, "passed": True, "seconds": 0.0, "stages": self._stages}

    def take(self, stage: str, row: Row) -> None:
        """Keeps and prints one row."""
        self.rows.append((stage, row))
        kept = self._stages.setdefault(stage, {"seconds": 0.0, "rows": []})
        kept["rows"].append(asdict(row))
        self._all["passed"] = all(row.passed is not False for _, row in self.rows)
        self._write()
        cells = [stage, row.name, row.result, row.target, row.verdict]
        print(f"{self.seconds:6.1f} s  " + "  ".join(cell for cell in cells if cell), flush=True)

    def end(self, stage: str, seconds: float) -> None:
        """Keeps how long a stage took."""
        self._stages.setdefault(stage, {"rows": []})["seconds"] = round(seconds, 1)
        self._write()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    @property
    def failed(self) -> list[tuple[str, Row]]:
        return [(stage, row) for stage, row in self.rows if row.passed is False]

    def _write(self) -> None:
        """A disk that refuses must not end the run."""
        self._all["seconds"] = round(self.seconds, 1)
        try:
            write_json(self._all, self._path)
            if self._copies:
                shutil.copy(self._path, self._copies)
        except OSError as error:
            print(f"{self._path}: {error}", file=sys.stderr, flush=True)


def table(rows: list[tuple[str, Row]]) -> str:
    """Rows for people, columns aligned."""
    heading = ("stage", "name", "result", "wanted", "")
    cells = [(stage, r.name, r.result, r.target, r.verdict) for stage, r in rows]
    return text_table([heading, *cells])
