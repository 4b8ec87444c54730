"""The latest results of `python -m bench`, by the machine that they are from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

OURS = "fusedstep"
PARTS = ("forward", "backward", "optimizer")  # of a training step


@dataclass(frozen=True)
class Timed:
    """A provider's row: times in milliseconds, with their 10 % and 90 % quantiles."""

    case: str
    provider: str
    mode: str
    tensors: int
    elements: int
    low: float
    middle: float
    high: float
    ratio: float  # to our time in the same round, the median; 0: not taken
    roof: float  # 0: none
    least_bytes: int
    state_bytes: int

    @classmethod
    def of(cls, row: Mapping[str, str]) -> Timed:
        """The line of the CSV."""
        low, middle, high, roof = (
            float(row[f"{name}_us"] or 0) / 1e3 for name in ("p10", "p50", "p90", "roof")
        )
        ratio = float(row["ratio"] or 0)
        tensors, elements, least_bytes, state_bytes = (
            int(row[name] or 0) for name in ("tensors", "elements", "least_bytes", "state_bytes")
        )
        return cls(
            row["case"], row["provider"], row["mode"], tensors, elements,
            low, middle, high, ratio, roof, least_bytes, state_bytes,
        )  # fmt: skip


@dataclass(frozen=True)
class Training:
    """Of each provider of the optimizer: the parts of a training step, in milliseconds."""

    model: str
    parts: Mapping[str, Mapping[str, float]]

    def whole(self, provider: str) -> float:
        """The step's time."""
        return sum(self.parts[provider].values())

    def share(self, provider: str) -> float:
        """Of clip and step in it."""
        return self.parts[provider][PARTS[-1]] / self.whole(provider)

    @property
    def theirs(self) -> str:
        """The fastest provider beside ours."""
        return min(self.parts.keys() - {OURS}, key=self.whole)

    @property
    def gain(self) -> float:
        """How many times as long the step takes with the other provider."""
        return self.whole(self.theirs) / self.whole(OURS)

    def sentence(self) -> str:
        """What clip and step were and are in a step, and what the whole step gains."""
        return (
            f"{self.model}: clip + step were {self.share(self.theirs):.0%} of the step, "
            f"are {self.share(OURS):.0%}; the whole step is {self.gain:.2f}x"
        )


@dataclass(frozen=True)
class Place:
    """A machine with what was measured there, and what figures say about it."""

    name: str
    rows: Sequence[Timed]
    note: str

    @property
    def slug(self) -> str:
        """For names of files."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def cases(self, pattern: str) -> dict[str, list[Timed]]:
        """The rows of each case whose name matches, ours first; by the pattern's group `of`."""
        found: dict[str, list[Timed]] = {}
        for row in sorted(self.rows, key=lambda row: row.provider != OURS):
            if match := re.fullmatch(pattern, row.case):
                found.setdefault(match.groupdict().get("of", row.case), []).append(row)
        return found

    def series(self, pattern: str) -> dict[str, list[Timed]]:
        """The rows of each provider, from few elements to many."""
        found: dict[str, list[Timed]] = {}
        rows = [row for case in self.cases(pattern).values() for row in case]
        for row in sorted(rows, key=lambda row: row.elements):
            found.setdefault(row.provider, []).append(row)
        return found

    def trainings(self) -> Iterator[Training]:
        """Whole training steps of which every part was timed with ours and with another.

        Forward and backward are the same work with any optimizer: all have the mean of their times.
        """
        for model, rows in self.cases(rf"share/(?P<of>[^/]+)/({'|'.join(PARTS)})").items():
            parts: dict[str, dict[str, float]] = {}
            for row in rows:
                parts.setdefault(row.provider, {})[row.case.split("/")[-1]] = row.middle
            whole = {name: timed for name, timed in parts.items() if len(timed) == len(PARTS)}
            if OURS in whole and len(whole) > 1:
                same = {part: fmean(timed[part] for timed in whole.values()) for part in PARTS[:-1]}
                yield Training(model, {name: {**timed, **same} for name, timed in whole.items()})


def places(rows: Sequence[Mapping[str, str]]) -> Iterator[Place]:
    """Of each machine, device and number of threads the latest row of each case and provider.

    A provider whose latest row has no times, as it failed its check, is left out.
    """
    found: dict[tuple[str, ...], dict[tuple[str, str], Mapping[str, str]]] = {}
    for row in sorted(rows, key=lambda row: row["date"]):
        where = tuple(row[name] for name in ("machine", "device", "threads"))
        found.setdefault(where, {})[row["case"], row["provider"]] = row
    for (machine, device, threads), latest in found.items():
        timed = [row for row in latest.values() if row["p50_us"]]
        if timed:
            several = "" if threads == "1" else "s"
            name = f"{machine}, {threads} thread{several}" if device == "cpu" else machine
            versions = " and ".join(sorted({row["torch"].split("+")[0] for row in timed}))
            busy = any("busy" in row["load"] for row in timed)
            note = f"{name}, torch {versions}" + ", others were busy there" * busy
            yield Place(name, [Timed.of(row) for row in timed], note)
