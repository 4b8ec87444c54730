"""The results for people: a table for each case, the fastest side marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.record import Row, text_table

COLUMNS = {  # and their least widths
    "": 28, "p50": 8, "p10 – p90": 17, "ratio": 8, "95 %": 13,
    "GB/s": 6, "of roof": 7, "state": 7, "difference": 10,
}  # fmt: skip
CAPTION = """
ratio: this side's time / fusedstep's, and the interval that has the true median with 95 %
◀ the fastest
of roof: the time at the rate of torch's passes, or of its matrix product, / this side's time;
  above 100 % for what caches hold, and for steps that read memory faster than torch's passes
difference: of the results, relative"""


def number(text: object, unit: str = "") -> str:
    """Three digits; nothing for nothing."""
    return "" if text == "" else f"{float(str(text)):.3g}{unit}"


def scaled(text: object, *units: str) -> str:
    """Three digits, in the unit that fits; each is a thousand of the one before."""
    if text == "":
        return ""
    value, at = float(str(text)), 0
    while value >= 999.5 and at + 1 < len(units):
        value, at = value / 1000, at + 1
    return f"{value:.3g} {units[at]}"


def duration(microseconds: object) -> str:
    return scaled(microseconds, "µs", "ms", "s")


def size(count: object) -> str:
    return scaled(count, "B", "kB", "MB", "GB")


def cells(row: Row, fastest: bool) -> list[str]:
    """One side."""
    spread = " – ".join(duration(row[name]) for name in ("p10_us", "p90_us"))
    interval = " – ".join(number(row[name]) for name in ("ratio_low", "ratio_high"))
    timed = row["p50_us"] != ""
    return [
        f"  {row['provider']}",
        duration(row["p50_us"]),
        spread if timed else f"peak {size(row['peak_bytes'])}",
        number(row["ratio"]) + (" ◀" if fastest else "  "),
        interval if timed and row["ratio_low"] != row["ratio_high"] else "",
        number(row["gb_per_s"]),
        number(row["roof_percent"], " %"),
        size(row["state_bytes"]),
        str(row["check"]),
    ]


def measured(rows: Sequence[Row]) -> list[Row]:
    """Without the sides that computed something else or failed."""
    return [row for row in rows if row["p50_us"] != "" or row["peak_bytes"]]


def table(rows: Sequence[Row], heading: bool) -> Table:
    """The sides of one case."""
    view = Table(box=None, pad_edge=False, show_header=heading, header_style="")
    for at, (name, width) in enumerate(COLUMNS.items()):
        view.add_column(name, min_width=width, justify="left" if at == 0 else "right")
    times = {str(row["provider"]): float(str(row["p50_us"])) for row in rows if row["p50_us"] != ""}
    for row in measured(rows):
        best = len(times) > 1 and times.get(str(row["provider"])) == min(times.values())
        view.add_row(*cells(row, best), style="green" if best else "")
    return view


def show(rows: Sequence[Row]) -> None:
    """All cases on the terminal; in a file as wide as they have to be."""
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    cases = groupby(rows, lambda row: (row["device"], row["case"]))
    for at, ((device, case), sides) in enumerate(cases):
        lines = list(sides)
        load = str(lines[0]["load"])
        busy = f"  {load}" if load.endswith("busy") else ""
        console.print(Text.assemble((f"{case}, {device}", "bold"), (busy, "red")))
        console.print(table(lines, heading=at == 0))
        for row in lines:
            if row not in measured(lines):
                console.print(f"  {row['provider']} {row['check']}", style="red", highlight=False)
    console.print(CAPTION, highlight=False)
    faster = list(lost(rows))
    count = len({(row["device"], row["case"]) for row in rows})
    print(f"\nanother side is faster in {len(faster)} of {count} cases")
    if faster:
        print(text_table([("case", "side", "ratio"), *faster]))


def lost(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """The cases in which a side is faster than fusedstep's, the fastest, and its ratio."""
    for (_, case), sides in groupby(rows, lambda row: (row["device"], row["case"])):
        timed = [row for row in sides if row["ratio"] != ""]
        if timed:
            best = min(timed, key=lambda row: float(str(row["ratio"])))
            if float(str(best["ratio"])) < 1:
                yield str(case), str(best["provider"]), str(best["ratio"])
