"""A benchmark of functions against torch's: its options, cases in turns, a record, a table."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .contest import Step, alternate, timer_of
from .record import RESULTS, append, facts

COPIED = 1 << 24  # float64 elements copied for the bandwidth


def product_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """Operations a second of torch's product of two matrices, the best of seven."""
    A = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / min(timer_of(device)(lambda: A @ A, 1) for _ in range(7))


def copy_rate(device: torch.device, elements: int = COPIED) -> float:
    """Bytes a second that torch's copy of float64 reads and writes, the best of seven."""
    source = torch.randn(elements, dtype=torch.float64, device=device)
    target = torch.zeros_like(source)
    best = min(timer_of(device)(lambda: target.copy_(source), 1) for _ in range(7))
    return 2 * source.nbytes / best


def compare(
    ours: Step,
    theirs: Step,
    device: torch.device,
    seconds: float,
    *,
    target: float | None,
    floor_ms: float,
) -> dict[str, Any]:
    """Medians of both sides in turns; `target`: the wanted ratio of torch's time to ours."""
    samples = alternate(ours, theirs, timer_of(device), seconds)
    our_ms, their_ms = (1e3 * statistics.median(side) for side in samples)
    return {
        "samples": len(samples[0]),
        "our_ms": f"{our_ms:.4g}",
        "torch_ms": f"{their_ms:.4g}",
        "ratio": f"{their_ms / our_ms:.3g}",
        "target": "" if target is None else target,
        "floor_ms": f"{floor_ms:.3g}",
    }


def arguments(description: str, cases: Sequence[Any], results: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("all", "cpu", "cuda"), default="all")
    parser.add_argument("--case", choices=[case.name for case in cases], action="append")
    parser.add_argument("--seconds", type=float, default=12, help="of timing for each case")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="on a CPU")
    parser.add_argument("--csv", type=Path, default=results, help="the results file")
    parser.add_argument("--no-record", action="store_true", help="leave the results file alone")
    return parser.parse_args()


def run(
    name: str,
    description: str,
    cases: Sequence[Any],
    rate: Callable[[torch.device], Any],
    measure: Callable[[Any, torch.device, float, Any], dict[str, Any]],
    columns: Sequence[str],
    title: str = "medians in turns",
) -> None:
    """The whole of bench/<name>.py. `columns`: those of a row that the table shows.

    `measure(case, device, seconds, rate(device))` gives a case's own columns of bench/results.
    """
    options = arguments(description.split("\n")[0], cases, RESULTS / f"{name}.csv")
    torch.set_num_threads(options.threads)
    there = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    wanted = [device for device in there if options.device in ("all", device)]
    if not wanted:
        raise SystemExit(f"bench/{name}.py: no timings on CUDA: torch sees no GPU")
    rows = []
    for device in map(torch.device, wanted):
        where, of_device = facts(device), rate(device)
        for case in cases:
            if not options.case or case.name in options.case:
                print(f"{device}: {case.name} ...", flush=True)
                rows.append(where | measure(case, device, options.seconds, of_device))
    if not options.no_record:
        append(rows, options.csv)
    view = Table(*columns, title=title)
    for row in rows:
        view.add_row(*(str(row[column]) for column in columns))
    console = Console()
    console.width = max(console.width, 120)
    console.print(view)
