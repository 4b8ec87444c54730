"""What a stage's processes tell the runner, line by line in their logs: rows, and what begins."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

ROW, CHECK = "row: ", "check: "  # begin a line; of a check, its number and its name follow
BROKEN = 3  # exit status: the rows are told, but this process can use the GPU no more


@dataclass(frozen=True)
class Row:
    """What was looked at and what came out."""

    name: str
    result: str
    target: str = ""  # what was wanted
    passed: bool | None = None  # None where the result is only reported
    figures: Mapping[str, object] = field(default_factory=dict)  # for the results file alone

    @property
    def verdict(self) -> str:
        return {True: "pass", False: "FAIL", None: ""}[self.passed]

    def show(self) -> None:
        """Prints it for whoever reads the log; a pipe or file must not hold it back."""
        print(ROW + json.dumps(asdict(self)), flush=True)


def parse(line: str) -> Row | None:
    """The row of a line of a log; None where it has none, or was cut off."""
    if not line.startswith(ROW):
        return None
    try:
        return Row(**json.loads(line[len(ROW) :], parse_constant=str))
    except (TypeError, ValueError):
        return None


def parse_check(line: str) -> tuple[int, str] | None:
    """The number and the name of the check that begins with this line."""
    found = re.match(rf"{CHECK}(\d+) (.*)", line)
    return (int(found[1]), found[2]) if found else None
