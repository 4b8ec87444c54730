"""Times clip + step, fusedstep's one call against torch's two, on the CPU and a GPU if any.

    python bench/step.py                          every optimizer, about three minutes
    python bench/step.py --device cpu --rule rmsprop --case mlp --seconds 2 --no-record
    python bench/step.py --mode int8 --rule sgd   smaller state against our own float32 state

Both sides take turns in one process; the table shows medians. Each run is appended to
bench/results/step.csv, from which bench/plot.py draws.

Smaller state saves memory everywhere, but time only where memory is the limit, and a CPU core is
not fast enough for that. Of AdamW's 32 bytes a parameter, bfloat16 state saves 8 and 8-bit state
12: 0.4 and 0.6 ns at the 20 GB/s that a core has. The conversions take longer. In ns an element,
for one thread with AVX-512 at 2.1 GHz, all loops in full vectors:

    16 random bits                              0.43    Philox, 8 elements a call
    rounding to bfloat16                        0.2
    largest magnitude of a block                0.05
    8-bit code of either sign, never negative   0.43, 0.65    one and two square roots
    back to float32                             0.1

So 1.2 for both bfloat16 states and 2.2 for both 8-bit ones, beside 0.4 for AdamW itself.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from micro import memory, record
from micro.cases import CPU_CASES, GPU_CASES, Case, cases_for
from micro.contest import contest
from micro.rules import ADAMW, FLOAT32, MODES, RULES, Mode, Rule
from rich.console import Console
from rich.table import Table

from fusedstep import build

MEMORY_BOUND = ("gpt2", "billion")  # the cases in which smaller state can pay
SHORTER = 2  # optimizers other than AdamW, and modes, have this part of the seconds


def devices(wanted: str) -> list[torch.device]:
    """The devices to run on; SystemExit with a sentence where the wanted one cannot be used."""
    lack = build.CUDA_REASON or ("" if torch.cuda.is_available() else "torch sees no GPU")
    if wanted == "cuda" and lack:
        raise SystemExit(f"bench/step.py: no timings on CUDA: {lack}")
    both = [torch.device("cpu")] + ([] if lack else [torch.device("cuda", 0)])
    return [device for device in both if wanted in ("all", device.type)]


def contests(
    options: argparse.Namespace, device: torch.device
) -> Iterator[tuple[Case, Rule, Mode]]:
    """What the options leave; modes for AdamW alone unless another rule was asked for."""
    for case in cases_for(device):
        for rule in RULES.values():
            for mode in MODES.values():
                plain = mode is FLOAT32
                if (
                    (not options.case or case.name in options.case)
                    and (not options.rule or rule.name in options.rule)
                    and (not options.mode or mode.name in options.mode)
                    and (plain or case.name in MEMORY_BOUND)
                    and (plain or rule is ADAMW or options.rule)
                ):
                    yield case, rule, mode


def verdict(row: dict) -> str:
    if row["target"] == "":
        return ""
    return f"{row['target']}x {'met' if float(row['ratio']) >= row['target'] else 'missed'}"


def table(rows: list[dict]) -> Table:
    """The rows for people."""
    view = Table(title="clip + step, medians", caption_justify="left")
    view.caption = "GB/s: the bytes that no step can avoid moving, over fusedstep's time"
    texts = ("", "", "device", "against")
    figures = ("their ms", "our ms", "ratio", "target", "GB/s", "memory")
    for heading in texts + figures:
        view.add_column(heading, justify="right" if heading in figures else "left")
    titles = {case.name: case.title for case in CPU_CASES + GPU_CASES}
    for row in rows:
        state = "" if row["mode"] == FLOAT32.name else f", {row['mode']} state"
        extra = row["extra_memory_percent"]
        view.add_row(
            *(titles[row["case"]], RULES[row["rule"]].title + state, row["device"], row["against"]),
            *(row["their_ms"], row["our_ms"], row["ratio"], verdict(row), row["gb_per_s"]),
            f"{float(extra):+.2f} %" if extra else "",
        )
    return view


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted({case.name for case in CPU_CASES + GPU_CASES})
    parser.add_argument("--device", choices=("all", "cpu", "cuda"), default="all")
    for name, values in {"case": names, "rule": RULES, "mode": MODES}.items():
        parser.add_argument(f"--{name}", choices=values, action="append", help="repeatable")
    parser.add_argument("--seconds", type=float, default=8, help="of timing a case, for AdamW")
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
        for case, rule, mode in contests(options, device):
            print(f"{device}: {case.title}, {rule.title}, {mode.name} state ...", flush=True)
            main_contest = rule is ADAMW and mode is FLOAT32
            seconds = options.seconds / (1 if main_contest else SHORTER)
            outcome = contest(case, device, seconds, rule, mode)
            extra = memory.extra_percent(case, device) if main_contest else None
            rows.append(record.row(where, outcome, extra))
    if not rows:
        raise SystemExit("bench/step.py: nothing of this kind is timed on this device")
    if not options.no_record:
        record.append(rows, options.csv)
    console = Console()
    console.width = max(console.width, 140)  # a narrow terminal wraps; a log file need not
    console.print(table(rows))


if __name__ == "__main__":
    main()
