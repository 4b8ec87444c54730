"""Times what a step costs beside its elements: tensors of one element, one CPU thread.

    python -m bench.host                      twenty seconds
    python -m bench.host --seconds 2 --no-record

Every step gets gradients that lie elsewhere, as backward makes them. fusedstep's step clips;
torch's is `clip_grad_norm_` and fused AdamW. Both sides take turns of a few steps; the table shows
medians. The last lines are fits a + b n by least squares of relative errors. Each run is appended
to bench/results/host.csv. bench.instructions counts the instructions of the same steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.measure import Call, facts
from bench.record import RESULTS, Row, append_csv, text_table
from bench.step_cases import fused_step, torch_step

COUNTS = (1, 6, 150, 400, 2000)  # tensors
SETS = 3  # of gradients, which take turns
WARM_UP = 4  # steps
TURN = 10  # steps of one side before the other's: their median finds warm caches
CSV = RESULTS / "host.csv"

Side = Callable[[list[Tensor]], Call]


SIDES: tuple[Side, Side] = (fused_step, torch_step)


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
    loops = [Loop(side, count) for side in SIDES]
    samples: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while not samples[0] or time.perf_counter() < end:
        for loop, taken in zip(loops, samples, strict=True):
            taken += (loop.seconds() for _ in range(TURN))
    return statistics.median(samples[0]), statistics.median(samples[1])


# --- results --------------------------------------------------------------------------------------


def fit(counts: Sequence[int], costs: Sequence[float]) -> tuple[float, float]:
    """a and b of a + b n, which differs from each cost by as little as possible, in proportion."""
    n, cost = np.array(counts, float), np.array(costs, float)
    terms = np.stack([np.ones_like(n), n], axis=1) / cost[:, None]
    a, b = np.linalg.lstsq(terms, np.ones_like(n), rcond=None)[0]
    return float(a), float(b)


def rows_of(counts: Sequence[int], times: Sequence[tuple[float, float]]) -> list[Row]:
    """A line for each count of tensors."""
    return [
        {
            "tensors": count,
            "our_us": f"{1e6 * ours:.4g}",
            "torch_us": f"{1e6 * theirs:.4g}",
            "ratio": f"{theirs / ours:.3g}",
        }
        for count, (ours, theirs) in zip(counts, times, strict=True)
    ]


def fits(rows: Sequence[Row]) -> str:
    """The fitted costs of a step and of each tensor, a line for each column."""
    lines = [["", "a step", "and a tensor"]]
    for name in ("our_us", "torch_us"):
        costs = [float(str(row[name])) for row in rows]
        a, b = fit([int(str(row["tensors"])) for row in rows], costs)
        lines.append([name, f"{a:.4g}", f"{b:.3g}"])
    return text_table(lines, right=(1, 2))


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    add = options.add_argument
    add("--tensors", type=int, action="append", help=f"repeatable; default: {COUNTS}")
    add("--seconds", type=float, default=4, help="for each count of tensors (default: 4)")
    add("--csv", type=Path, default=CSV, help="results file (default: in bench/results)")
    add("--no-record", action="store_true", help="leave the results file alone")
    return options.parse_args()


def main() -> None:
    options = arguments()
    counts = options.tensors or COUNTS
    torch.set_num_threads(1)
    rows = rows_of(counts, [medians(count, options.seconds) for count in counts])
    if not options.no_record:
        where = facts(torch.device("cpu"))
        append_csv([{**where, **row} for row in rows], options.csv)
    lines = [list(rows[0]), *([str(x) for x in row.values()] for row in rows)]
    print(f"a step of AdamW with clip, medians in turns\n{text_table(lines, range(len(rows[0])))}")
    if len(rows) > 1:
        print(f"\na + b n\n{fits(rows)}")


if __name__ == "__main__":
    main()
