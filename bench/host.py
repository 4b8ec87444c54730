"""Counts and times what a step costs beside its elements: tensors of one element, one CPU thread.

    python -m bench.host                      instructions and time, about six minutes
    python -m bench.host --no-count --seconds 2 --no-record

Every step gets gradients that lie elsewhere, as backward makes them. fusedstep's step clips;
torch's is `clip_grad_norm_` and fused AdamW. Both sides take turns of a few steps; the table shows
medians. Where valgrind is found, callgrind counts the instructions, which do not depend on what
else the machine does; the process under it marks the steps, so nothing else is counted. The last
lines are fits a + b n by least squares of relative errors. Each run is appended to
bench/results/host.csv.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.measure import Call, facts
from bench.record import RESULTS, ROOT, Row, append_csv, text_table
from bench.step_cases import fused_step, torch_step

COUNTS = (1, 6, 150, 400, 2000)  # tensors
SETS = 3  # of gradients, which take turns
WARM_UP = 4  # steps
TURN = 10  # steps of one side before the other's: their median finds warm caches
COUNTED = 10  # steps under callgrind
CSV = RESULTS / "host.csv"

Side = Callable[[list[Tensor]], Call]


def no_step(params: list[Tensor]) -> Call:
    """Neither side: what exchanging the gradients costs."""
    return lambda: None


SIDES: dict[str, Side] = {"none": no_step, "ours": fused_step, "theirs": torch_step}


class Loop:
    """Steps of one side over `count` tensors, each with other gradients than the one before."""

    def __init__(self, side: Side, count: int) -> None:
        self.params = [torch.zeros(1) for _ in range(count)]
        sets = [[torch.ones(1) for _ in range(count)] for _ in range(SETS)]
        self._grads = cycle(sets)
        self._step = side(self.params)
        for _ in range(WARM_UP):
            self.seconds()

    def seconds(self) -> float:
        """Of one step, without the exchange of the gradients."""
        for param, grad in zip(self.params, next(self._grads), strict=True):
            param.grad = grad
        begin = time.perf_counter()
        self._step()
        return time.perf_counter() - begin


def medians(count: int, seconds: float) -> tuple[float, float]:
    """Seconds of our step and of torch's, in turns for so many seconds, one turn at least."""
    loops = [Loop(SIDES[side], count) for side in ("ours", "theirs")]
    samples: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while not samples[0] or time.perf_counter() < end:
        for loop, taken in zip(loops, samples, strict=True):
            taken += (loop.seconds() for _ in range(TURN))
    return statistics.median(samples[0]), statistics.median(samples[1])


# --- instructions ---------------------------------------------------------------------------------


def mark() -> None:
    """A system call that nothing else makes: callgrind writes a file before each."""
    os.getsid(0)


def run_counted(counts: Sequence[int]) -> None:
    """What runs under callgrind: between two marks each, `COUNTED` steps of every side."""
    torch.set_num_threads(1)
    for count in counts:
        for side in SIDES.values():
            loop = Loop(side, count)
            mark()
            for _ in range(COUNTED):
                loop.seconds()
            mark()


def instructions(counts: Sequence[int]) -> list[tuple[float, float]]:
    """Instructions of our step and of torch's, for each count of tensors."""
    code = f"from bench.host import run_counted; run_counted({tuple(counts)})"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = ["valgrind", "--tool=callgrind", "--dump-before=getsid", "--quiet"]
        command += [f"--callgrind-out-file={out}", sys.executable, "-c", code]
        subprocess.run(command, cwd=ROOT, check=True)
        # File 1 has what was before the first mark; those of even numbers have the steps.
        files = [Path(f"{out}.{2 * i + 2}") for i in range(len(counts) * len(SIDES))]
        totals = [total_of(file.read_text()) / COUNTED for file in files]
    by_count = [totals[i : i + len(SIDES)] for i in range(0, len(totals), len(SIDES))]
    return [(ours - none, theirs - none) for none, ours, theirs in by_count]


def total_of(profile: str) -> int:
    """The instructions of a callgrind profile."""
    found = re.search(r"^totals: (\d+)$", profile, re.MULTILINE)
    if found is None:
        raise ValueError("a callgrind profile must have totals")
    return int(found[1])


# --- results --------------------------------------------------------------------------------------


def fit(counts: Sequence[int], costs: Sequence[float]) -> tuple[float, float]:
    """a and b of a + b n, which differs from each cost by as little as possible, in proportion."""
    n, cost = np.array(counts, float), np.array(costs, float)
    terms = np.stack([np.ones_like(n), n], axis=1) / cost[:, None]
    a, b = np.linalg.lstsq(terms, np.ones_like(n), rcond=None)[0]
    return float(a), float(b)


def rows_of(
    counts: Sequence[int],
    times: Sequence[tuple[float, float]],
    counted: Sequence[tuple[float, float]],
) -> list[Row]:
    """A line for each count of tensors; without valgrind, `counted` is empty."""
    rows: list[Row] = []
    for i, (count, (ours, theirs)) in enumerate(zip(counts, times, strict=True)):
        row = {
            "tensors": count,
            "our_us": f"{1e6 * ours:.4g}",
            "torch_us": f"{1e6 * theirs:.4g}",
            "ratio": f"{theirs / ours:.3g}",
        }
        names = ("our_instructions", "torch_instructions")
        found = map(round, counted[i]) if counted else ("", "")
        rows.append({**row, **dict(zip(names, found, strict=True))})
    return rows


def fits(rows: Sequence[Row]) -> str:
    """The fitted costs of a step and of each tensor, a line for each column."""
    lines = [["", "a step", "and a tensor"]]
    for name in ("our_us", "torch_us", "our_instructions", "torch_instructions"):
        if rows[0][name] != "":
            costs = [float(str(row[name])) for row in rows]
            a, b = fit([int(str(row["tensors"])) for row in rows], costs)
            lines.append([name, f"{a:.4g}", f"{b:.3g}"])
    return text_table(lines, right=(1, 2))


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    add = options.add_argument
    add("--tensors", type=int, action="append", help=f"repeatable; default: {COUNTS}")
    add("--seconds", type=float, default=4, help="for each count of tensors (default: 4)")
    add("--no-count", action="store_true", help="count no instructions")
    add("--csv", type=Path, default=CSV, help="results file (default: in bench/results)")
    add("--no-record", action="store_true", help="leave the results file alone")
    return options.parse_args()


def main() -> None:
    options = arguments()
    counts = options.tensors or COUNTS
    torch.set_num_threads(1)
    times = [medians(count, options.seconds) for count in counts]
    can_count = shutil.which("valgrind") is not None and not options.no_count
    rows = rows_of(counts, times, instructions(counts) if can_count else [])
    if not options.no_record:
        where = facts(torch.device("cpu"))
        append_csv([{**where, **row} for row in rows], options.csv)
    lines = [list(rows[0]), *([str(x) for x in row.values()] for row in rows)]
    print(f"a step of AdamW with clip, medians in turns\n{text_table(lines, range(len(rows[0])))}")
    if len(rows) > 1:
        print(f"\na + b n\n{fits(rows)}")


if __name__ == "__main__":
    main()
