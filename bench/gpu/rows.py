"""The lines of the final table: what was checked, the result, what was wanted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.record import text_table


@dataclass(frozen=True)
class Row:
    """One line. `target` is "" where a figure is only reported, and then `passed` is ignored."""

    part: str
    result: str
    target: str
    passed: bool

    @property
    def verdict(self) -> str:
        return ("pass" if self.passed else "FAIL") if self.target else ""


class Findings:
    """What a script has found, written line by line: a script that runs over keeps its lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []
        self._figures: dict[str, object] = {}
        self._write()

    def row(self, part: str, result: str, target: str = "", passed: bool = True) -> None:
        """Adds a line to the table and prints it."""
        self._rows.append(Row(part, result, target, passed))
        print(table(self._rows[-1:]), flush=True)
        self._write()

    def figure(self, name: str, value: object) -> None:
        """Adds what only the results file shows."""
        self._figures[name] = value
        self._write()

    def _write(self) -> None:
        rows = [asdict(row) for row in self._rows]
        self._path.write_text(json.dumps({"rows": rows, "figures": self._figures}))


def read(path: Path) -> tuple[list[Row], dict[str, object]]:
    """The lines and figures of a script; none if it did not get that far."""
    if not path.exists():
        return [], {}
    found = json.loads(path.read_text())
    return [Row(**row) for row in found["rows"]], found["figures"]


def table(rows: list[Row], heading: bool = False) -> str:
    """The lines for people, columns aligned."""
    cells = [("part", "result", "target", "")] if heading else []
    cells += [(row.part, row.result, row.target, row.verdict) for row in rows]
    return text_table(cells)
