"""Times clip + AdamW, fusedstep's one call against torch's two, on the CPU and a GPU if any.

    python bench/step.py                          every case on every device, about a minute
    python bench/step.py --device cpu --case mlp --seconds 2 --no-record

Both sides take turns in one process; the table shows medians. Each run is appended to
bench/results/step.csv, from which bench/plot.py draws.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from micro import memory, record
from micro.cases import CPU_CASES, GPU_CASES, Case, cases_for
from micro.contest import contest
from rich.console import Console
from rich.table import Table

from fusedstep import build


def devices(wanted: str) -> list[torch.device]:
    """The devices to run on; SystemExit with a sentence where the wanted one cannot be used."""
    lack = build.CUDA_REASON or ("" if torch.cuda.is_available() else "torch sees no GPU")
    if wanted == "cuda" and lack:
        raise SystemExit(f"bench/step.py: no timings on CUDA: {lack}")
    both = [torch.device("cpu")] + ([] if lack else [torch.device("cuda", 0)])
    return [device for device in both if wanted in ("all", device.type)]


def verdict(row: dict) -> str:
    if row["target"] == "":
        return ""
    return f"{row['target']}x {'met' if float(row['ratio']) >= row['target'] else 'missed'}"


def table(rows: list[dict]) -> Table:
    """The rows for people."""
    view = Table(title="clip + AdamW, medians", caption_justify="left")
    view.caption = "GB/s: the bytes that no step can avoid moving, over fusedstep's time"
    for heading in ("", "device", "torch ms", "fusedstep ms", "ratio", "target", "GB/s", "memory"):
        view.add_column(heading, justify="left" if heading in ("", "device") else "right")
    titles = {case.name: case.title for case in CPU_CASES + GPU_CASES}
    for row in rows:
        extra = row["extra_memory_percent"]
        view.add_row(
            *(titles[row["case"]], row["device"], row["torch_ms"], row["our_ms"], row["ratio"]),
            *(verdict(row), row["gb_per_s"], f"{float(extra):+.2f} %" if extra else ""),
        )
    return view


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted({case.name for case in CPU_CASES + GPU_CASES})
    parser.add_argument("--device", choices=("all", "cpu", "cuda"), default="all")
    parser.add_argument("--case", choices=names, action="append", help="may be given repeatedly")
    parser.add_argument("--seconds", type=float, default=8, help="of timing for each case")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="on a CPU")
    parser.add_argument("--csv", type=Path, default=record.CSV, help="the results file")
    parser.add_argument("--no-record", action="store_true", help="leave the results file alone")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows = []
    for device in devices(options.device):
        where = record.facts(device)
        chosen: list[Case] = [
            case for case in cases_for(device) if not options.case or case.name in options.case
        ]
        for case in chosen:
            print(f"{device}: {case.title} ...", flush=True)
            outcome = contest(case, device, options.seconds)
            rows.append(record.row(where, outcome, memory.extra_percent(case, device)))
    if not rows:
        raise SystemExit("bench/step.py: no such case on this device")
    if not options.no_record:
        record.append(rows, options.csv)
    console = Console()
    console.width = max(console.width, 100)  # a narrow terminal wraps; a log file need not
    console.print(table(rows))


if __name__ == "__main__":
    main()
