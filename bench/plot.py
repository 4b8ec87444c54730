"""Draws bench/results/step.png from bench/results/step.csv, which has all runs of bench.step.

    python -m bench.plot

Left: the latest ratio of the other side's time to ours for each machine, case, optimizer and mode,
with its target. Right: each ratio from run to run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.record import read_csv, write_png
from bench.step import CSV

Series = dict[tuple[str, str], list[dict[str, str]]]


def series(rows: list[dict[str, str]]) -> Series:
    """The runs of each machine and of each thing timed there, in the order of their dates."""
    found: Series = {}
    for row in sorted(rows, key=lambda row: row["date"]):
        machine = row["machine"]
        if row["device"] == "cpu":
            machine += f", {row['threads']} threads"
        timed = f"{row['case']}, {row['rule']}"
        if row["mode"] != "float32":
            timed += f", {row['mode']} against float32 state"
        found.setdefault((machine, timed), []).append(row)
    return found


def draw_latest(axes: Axes, found: Series) -> None:
    """A bar for each series; a line across it marks the target."""
    latest = [(f"{timed}\n{machine}", runs[-1]) for (machine, timed), runs in found.items()]
    for at, (_, row) in enumerate(latest):
        ratio = float(row["ratio"])
        axes.barh(at, ratio, color="tab:blue")
        axes.text(ratio, at, f" {ratio:.2f}x, {float(row['gb_per_s']):.0f} GB/s", va="center")
        if row["target"]:
            axes.vlines(float(row["target"]), at - 0.45, at + 0.45, color="tab:red", linewidth=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(latest)), [label for label, _ in latest], fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.margins(x=0.35)
    axes.set_xlabel("the other side's time / fusedstep's time (red: target)")


def draw_history(axes: Axes, found: Series) -> None:
    """A line for each series over its runs, named by their commits."""
    for (machine, timed), runs in found.items():
        ratios = [float(row["ratio"]) for row in runs]
        axes.plot([row["date"] for row in runs], ratios, marker="o", label=f"{timed}, {machine}")
    dates = sorted({row["date"]: row["commit"] for runs in found.values() for row in runs}.items())
    axes.set_xticks([date for date, _ in dates], [commit for _, commit in dates], rotation=90)
    axes.tick_params(axis="x", labelsize=6)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.yaxis.set_minor_formatter("{x:g}x")
    axes.set_ylabel("the other side's time / fusedstep's time")
    axes.legend(fontsize=6)


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Both panels for these lines of the CSV, written to `path`."""
    found = series(rows)
    figure = Figure(figsize=(14, max(3, 1 + 0.5 * len(found))), dpi=120, layout="constrained")
    latest, history = figure.subplots(1, 2)
    draw_latest(latest, found)
    draw_history(history, found)
    write_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--csv", type=Path, default=CSV, help="results of bench.step")
    options = parser.parse_args()
    if not options.csv.exists():
        raise SystemExit(f"bench.plot: no {options.csv}: run `python -m bench.step` first")
    path = options.csv.with_suffix(".png")
    draw(read_csv(options.csv), path)
    print(path)


if __name__ == "__main__":
    main()
