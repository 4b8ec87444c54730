"""Where and with what a figure was measured, and the one CSV file that keeps them all."""

from __future__ import annotations

import csv
from datetime import datetime, timezone
from pathlib import Path

import torch

from fusedstep.__main__ import processor_name

from .contest import Outcome
from .origin import ROOT, commit, driver

RESULTS = ROOT / "bench" / "results"
CSV = RESULTS / "step.csv"


def facts(device: torch.device) -> dict[str, object]:
    """The columns that say where and with what."""
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "driver": driver() if on_gpu else "",
        "commit": commit(),
    }


def row(where: dict[str, object], outcome: Outcome, extra_memory: float | None) -> dict:
    """One line of the CSV. `extra_memory`: beyond torch's, in percent of the parameters' bytes."""
    case = outcome.case
    return where | {
        "rule": outcome.rule.name,
        "mode": outcome.mode.name,
        "against": outcome.against,
        "case": case.name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "tensors": len(case.shapes),
        "parameters": case.parameters,
        "samples": outcome.samples,
        "our_ms": f"{outcome.ours_ms:.5g}",
        "their_ms": f"{outcome.their_ms:.5g}",
        "ratio": f"{outcome.ratio:.4g}",
        "target": "" if outcome.target is None else outcome.target,
        "floor_bytes": outcome.floor_bytes,
        "gb_per_s": f"{outcome.gigabytes_per_second:.4g}",
        "extra_memory_percent": "" if extra_memory is None else f"{extra_memory:.3f}",
    }


def append(rows: list[dict], path: Path = CSV) -> None:
    """Adds lines, and the heading to a new file; ValueError where the file has other columns."""
    columns = list(rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    if not fresh:
        with path.open(newline="") as file:
            found = next(csv.reader(file), [])
        if found != columns:
            raise ValueError(f"{path.name}: columns must be {columns}, got {found}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path = CSV) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
