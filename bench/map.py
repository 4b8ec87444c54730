"""Times everything that stands in for a function of torch against it, over the whole space.

    python -m bench.map                              everything, on 1 and 2 threads, half an hour
    python -m bench.map --case pinv --threads 1 --seconds 0.2 --no-record
    python -m bench.map --draw                       only draw what is recorded

Functions, shapes, batches, ranks, dtypes, threads: a cell of the map is the median of torch's time
over that of fusedstep's, in turns in one process. Each run is appended to bench/results/map.csv,
and bench/results/map.png is drawn from the latest figure of every cell. Timings of less than 0.1 ms
vary by several percent from run to run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

import fusedstep
from bench.case import Shape, random_params
from bench.command import exit_status
from bench.measure import Call, compare, devices, facts
from bench.norm import clip, total_norm
from bench.pinv import Problem as Matrices
from bench.record import RESULTS, Row, append_csv, read_csv, text_table, write_png
from bench.step_cases import MLP, MUON, RULES, SMALL, fused_step, gpt2_shapes, torch_step

CSV = RESULTS / "map.csv"
COLUMNS = 4  # of the right-hand side of least squares

SETS = {
    "one of 10": ((10,),),
    "MLP, 6": MLP,
    "148 of [128, 128] and [128]": ((128, 128), (128,)) * 74,
    "400 of [64, 64] and [64]": SMALL,
    "one of 8 M": ((1 << 23,),),
    "GPT-2 124M, 148": gpt2_shapes(),
}
HIDDEN = {  # for Muon, which takes matrices
    "one of [64, 64]": ((64, 64),),
    "one of [128, 128]": ((128, 128),),
    "16 of [256, 256]": ((256, 256),) * 16,
    "4 of [256, 1024], 4 of [1024, 256]": ((256, 1024), (1024, 256)) * 4,
    "one of [768, 3072]": ((768, 3072),),
}
SHAPES = (
    *[(3, 3), (16, 3, 3), (1024, 3, 3)],
    *[(8, 8), (16, 8, 8), (1024, 8, 8)],
    *[(16, 16), (32, 32), (16, 32, 32), (256, 32, 32), (32, 8)],
    *[(64, 64), (16, 64, 64), (100, 100), (16, 100, 100)],
    *[(200, 50), (16, 200, 50), (50, 200), (300, 300), (1000, 200), (1000, 1000)],
)
RANKS = {"full rank": 1.0, "half rank": 0.5, "rank 10 %": 0.1}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

Sides = tuple[Call, Call]  # ours and torch's


@dataclass(frozen=True)
class Cell:
    """One function on one problem: a row and a column of the map, and what makes both sides."""

    function: str
    work: str
    variant: str
    sides: Callable[[torch.device], Sides]


def of_tensors(
    of_params: Callable[[list[Tensor]], Call],
    torchs: Callable[[list[Tensor]], Call],
    shapes: tuple[Shape, ...],
    dtype: torch.dtype,
) -> Callable[[torch.device], Sides]:
    """Both sides, each on its own copies of the same tensors."""
    return lambda device: (
        of_params(random_params(shapes, dtype, device)),
        torchs(random_params(shapes, dtype, device)),
    )


def step_cells() -> Iterator[Cell]:
    """Optimizers and norms, over sets of tensors."""
    torchs: Any = torch.nn.utils

    def both(make: Callable[..., Call], **arguments: bool) -> tuple[Callable[..., Call], ...]:
        return tuple(partial(make, side, **arguments) for side in (fusedstep, torchs))

    functions: dict[str, tuple[Callable[..., Call], ...]] = {
        "clip_grad_norm_, not clipped": both(clip, clips=False),
        "clip_grad_norm_, clipped": both(clip, clips=True),
        "get_total_norm": both(total_norm),
        "clip + AdamW": (fused_step, torch_step),
    }
    for rule in RULES.values():
        if rule.name not in ("lion", "muon"):  # torch has no Lion; Muon takes matrices alone
            functions[rule.title] = tuple(
                lambda params, side=side, rule=rule: side(params, **rule.arguments).step
                for side in (rule.ours, rule.theirs)
            )
    functions[MUON.title] = tuple(
        lambda params, side=side: side(params).step for side in (MUON.ours, MUON.theirs)
    )
    for function, (ours, theirs) in functions.items():
        for name, shapes in (HIDDEN if function == MUON.title else SETS).items():
            for dtype in ("float32", "bfloat16"):
                sides = of_tensors(ours, theirs, shapes, DTYPES[dtype])
                yield Cell(function, name, dtype, sides)


def matrix_cells() -> Iterator[Cell]:
    """`pinv` and `lstsq`, over shapes, ranks and dtypes."""

    def sides(problem: Matrices, device: torch.device) -> Sides:
        A = problem.matrices(device)
        ours, theirs = (partial(side, A) for side in problem.sides())
        return ours, theirs

    for function, columns in (("pinv", None), ("lstsq", COLUMNS)):
        for shape in SHAPES:
            for dtype in ("float32", "float64"):
                for name, part in RANKS.items():
                    rank = None if part == 1 else max(1, round(part * min(shape[-2:])))
                    problem = Matrices(name, shape, DTYPES[dtype], rank, columns)
                    work = str(list(shape))
                    yield Cell(function, work, f"{dtype}, {name}", partial(sides, problem))


PANELS = {"tensors": tuple(step_cells()), "matrices": tuple(matrix_cells())}
CELLS = tuple(cell for cells in PANELS.values() for cell in cells)


def measure(cell: Cell, device: torch.device, seconds: float) -> Row:
    ours, theirs = cell.sides(device)
    medians = compare(ours, theirs, device, seconds)
    return {
        "function": cell.function,
        "work": cell.work,
        "variant": cell.variant,
        "samples": medians.samples,
        "our_ms": f"{1e3 * medians.ours:.4g}",
        "torch_ms": f"{1e3 * medians.theirs:.4g}",
        "ratio": f"{medians.ratio:.3g}",
    }


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """The latest ratio of each cell on the device of the last row: blue is faster, red slower."""
    rows = [row for row in rows if row["device"] == rows[-1]["device"]]
    latest = {(r["function"], r["work"], r["variant"], r["threads"]): r["ratio"] for r in rows}
    threads = sorted({row["threads"] for row in rows}, key=int)
    height = max(len({(c.function, c.work) for c in cells}) for cells in PANELS.values())
    figure = Figure(figsize=(15, 1.5 + 0.23 * height), dpi=110, layout="constrained")
    for axes, cells in zip(figure.subplots(1, len(PANELS)), PANELS.values(), strict=True):
        lines = list(dict.fromkeys((cell.function, cell.work) for cell in cells))
        columns = [(v, t) for v in dict.fromkeys(cell.variant for cell in cells) for t in threads]
        ratios = np.array(
            [[float(latest.get((*line, *c), "nan")) for c in columns] for line in lines]
        )
        colors = TwoSlopeNorm(0, -2, 4)  # of log2
        axes.imshow(np.log2(ratios), cmap="RdBu", norm=colors, aspect="auto")
        for (y, x), ratio in np.ndenumerate(ratios):
            if ratio == ratio:
                white = not 0.35 < ratio < 6
                axes.text(
                    x, y, f"{ratio:.3g}", ha="center", va="center",
                    fontsize=7, color="white" if white else "black",
                )  # fmt: skip
        axes.set_xticks(range(len(columns)), [f"{v}, {t}" for v, t in columns], rotation=90)
        axes.set_yticks(range(len(lines)), [f"{function}  {work}" for function, work in lines])
        axes.tick_params(labelsize=7, length=0)
        axes.xaxis.tick_top()
    machine = f"{rows[-1]['machine']}, torch {rows[-1]['torch']}"
    figure.suptitle(f"torch's time / fusedstep's time, by dtype, rank and threads: {machine}")
    write_png(figure, path)


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    add = options.add_argument
    names = list(dict.fromkeys(cell.function for cell in CELLS))
    add("--device", choices=("all", "cpu", "cuda"), default="all", help="default: all")
    add("--case", choices=names, action="append", help="repeatable; default: all")
    add("--seconds", type=float, default=0.5, help="for each cell (default: 0.5)")
    add("--threads", type=int, help="CPU threads (default: 1, then 2)")
    add("--csv", type=Path, default=CSV, help="results file (default: in bench/results)")
    add("--no-record", action="store_true", help="leave the results file alone")
    add("--draw", action="store_true", help="measure nothing")
    return options.parse_args()


def main() -> int:
    chosen = arguments()
    cells = (
        [] if chosen.draw else [c for c in CELLS if not chosen.case or c.function in chosen.case]
    )
    rows: list[Row] = []
    for device in devices(chosen.device):
        for threads in [chosen.threads] if chosen.threads else (1, 2):
            torch.set_num_threads(threads)
            where = facts(device)
            for cell in cells:
                measured = measure(cell, device, chosen.seconds)
                print(*(f"{measured[k]}" for k in measured), f"{threads} threads", flush=True)
                rows.append({**where, **measured})
                if not chosen.no_record:
                    append_csv(rows[-1:], chosen.csv)
    slower = [row for row in rows if float(str(row["ratio"])) < 1]
    if slower:
        shown = ("function", "work", "variant", "threads", "torch_ms", "our_ms", "ratio")
        print(f"\nslower than torch: {len(slower)} of {len(rows)}")
        print(text_table([shown, *([str(row[name]) for name in shown] for row in slower)]))
    if chosen.draw or not chosen.no_record:
        draw(read_csv(chosen.csv), chosen.csv.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("bench.map", main))
