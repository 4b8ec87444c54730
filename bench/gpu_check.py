"""Proves and times everything on this machine's GPU: bits, speed, graphs, tests, sanitizers.

    python -m bench.gpu_check --call 1      builds, compares bits, times: at most 480 s
    python -m bench.gpu_check --call 2      tests, sanitizers, counters: at most 270 s
    python -m bench.gpu_check --rehearse    both, with the CPU in the GPU's place; --quick for CI

Uses the Python it runs under and no network. Every row is written at once to
bench/results/gpu-<name>-call-<n>.json, a rehearsal's to build/gpu-check; copies of it and of all
logs go to the folder $OUT if that is set. Status 0 where nothing failed, 1 where something did, 2
where torch sees no GPU. FUSEDSTEP_COMMIT names the commit where there is no .git.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from bench.gpu.build import are_there
from bench.gpu.probe import gpu_and_driver
from bench.gpu.results import Results, table
from bench.gpu.rows import Row
from bench.gpu.runner import Stage, file_name, run_stage
from bench.gpu.stages import LIMITS, Plan, calls
from bench.record import RESULTS, ROOT, commit
from python.buildtools.facts import fingerprint

LEAST = 15  # seconds that a stage without seconds of its own must find left


def run_stages(
    stages: list[Stage], limit: float, logs: Path, results: Results, copies: Path | None
) -> int:
    """Runs them one after another within `limit` seconds; the exit status."""
    for folder in filter(None, (logs, copies)):
        folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + limit

    def tell(line: str) -> None:
        with suppress(OSError):  # a full disk ends nothing
            print(line, file=log)

    with ((copies or logs) / f"all-{logs.name}.log").open("w", buffering=1) as log:
        for stage in stages:
            begin = time.monotonic()
            left = end - begin
            if stage.left_out or left < (1 if stage.limit else LEAST):
                reason = stage.left_out or f"the {limit:.0f} s were used up"
                results.take(stage.name, Row(stage.name, f"left out: {reason}"))
                continue
            tell(f"== {stage.name}")
            run_stage(
                stage,
                min(stage.limit or left, left),
                logs,
                take=lambda row, name=stage.name: results.take(name, row),  # type: ignore[misc]
                tell=tell,
            )
            results.end(stage.name, time.monotonic() - begin)
            lost = [r for _, r in results.failed if r.name == stage.needs]
            if lost:
                print(f"\ngpu-check: {lost[0].name}: {lost[0].result}; nothing else can run")
                return 2 if lost[0].name == "GPU" else 1
    return 1 if results.failed else 0


def run_call(call: int, plan: Plan, folder: Path, copies: Path | None) -> int:
    """One of the two calls; the exit status."""
    gpu = "rehearsal" if plan.rehearse else gpu_and_driver() or "unknown"
    name = f"gpu-{file_name(gpu.split(',')[0]).lower()}-call-{call}"
    facts = {
        "gpu": gpu,
        "call": call,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "sources": fingerprint(plan.root),
        "scale": plan.scale,
    }
    print(f"gpu-check, call {call}: {gpu}, commit {facts['commit']}", flush=True)
    logs = ROOT / "build" / "gpu-check" / f"call-{call}"
    results = Results(folder / f"{name}.json", facts, copies)
    limit = plan.seconds(LIMITS[call])
    status = run_stages(calls(plan, are_there(plan.root))[call], limit, logs, results, copies)
    if results.failed:
        print("\n" + table(results.failed))
    print(f"\n{len(results.failed)} of {len(results.rows)} rows failed, {results.seconds:.0f} s")
    return status


def end(number: int, frame: FrameType | None) -> None:
    """On SIGTERM: what runs is killed on the way out."""
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--call", type=int, choices=tuple(LIMITS), help="default: both")
    parser.add_argument("--rehearse", action="store_true", help="with the CPU in the GPU's place")
    parser.add_argument("--quick", action="store_true", help="a rehearsal of a few small checks")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    plan = Plan(ROOT, asked.rehearse or asked.quick, asked.quick)
    folder = ROOT / "build" / "gpu-check" if plan.rehearse else RESULTS
    copies = Path(os.environ["OUT"]) if os.environ.get("OUT") else None
    status = 0
    for call in [asked.call] if asked.call else LIMITS:
        status = max(status, run_call(call, plan, folder, copies))
    return status


if __name__ == "__main__":
    sys.exit(main())
