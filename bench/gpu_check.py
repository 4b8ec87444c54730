"""Proves and times everything on this machine's GPU: the build, the tests, the bits, the speed.

    python -m bench.gpu_check      at most 8 minutes, no network; ends in one table

Uses the Python it runs under. Logs go to build/gpu-check, the results to bench/results/gpu-*.json;
copies of both go to the folder $OUT if that is set. Status 0 where all passed, 1 where something
did not, 2 where torch sees no GPU. FUSEDSTEP_COMMIT names the commit where there is no .git.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from bench.gpu.parts import parts
from bench.gpu.rows import Row, table
from bench.gpu.runner import Part, Run, run_all, run_command
from bench.record import RESULTS, ROOT, commit
from python.buildtools import cuda

SECONDS = 480
TAIL = 15  # lines of a failing part's log that are shown


class Results:
    """Keeps the results file current: a machine may be taken away before the end."""

    def __init__(self, facts: dict, results: Path, logs: Path, out: Path | None) -> None:
        name = re.sub(r"[^a-z0-9]+", "-", facts["name"].lower()).strip("-")
        self.rows: list[Row] = []
        self._path = results / f"gpu-{name}.json"
        self._logs, self._out = logs, out
        self._begin = time.monotonic()
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._all = {"date": date, **facts, "commit": commit(), "parts": {}}

    def take(self, part: Part, rows: list[Row], figures: dict, seconds: float) -> None:
        """One part's rows and figures; prints them, with the end of the log where one failed."""
        self.rows += rows
        self._all["parts"][part.name] = {
            "seconds": round(seconds, 1),
            "rows": [vars(row) | {"verdict": row.verdict} for row in rows],
            "figures": figures,
        }
        self._all["passed"] = all(row.passed for row in self.rows)
        self._all["seconds"] = round(time.monotonic() - self._begin, 1)
        print(f"\n== {part.name}, {seconds:.0f} s\n{table(rows)}", flush=True)
        log = self._logs / f"{part.name.replace(' ', '-')}.log"
        text = log.read_text(errors="replace") if log.exists() and seconds else ""
        if not all(row.passed for row in rows):
            print("\n".join(text.strip().split("\n")[-TAIL:]), flush=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._all, indent=1) + "\n")
        if self._out:
            shutil.copy(self._path, self._out)
            with (self._out / "gpu-check.log").open("a") as file:
                file.write(f"\n== {part.name}\n{text}")


def device_facts() -> dict:
    """The first GPU and the versions, asked in a separate process."""
    command = [sys.executable, "-m", "bench.gpu.device"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"gpu-check: {sys.executable} cannot ask for the GPU:\n{result.stderr}")
    return json.loads(result.stdout)


def check(
    facts: dict, results: Path, logs: Path, out: Path | None, seconds: float, run: Run
) -> int:
    """Runs all parts; the exit status."""
    if not facts["name"]:
        print(f"gpu-check: torch {facts['torch']} sees no GPU on this machine: nothing to check")
        return 2
    print(f"{facts['name']}, torch {facts['torch']}, CUDA {facts['cuda']}, commit {commit()}")
    kept = Results(facts, results, logs, out)
    every = parts(ROOT, cuda.find_toolkit(), facts["capability"])
    run_all(every, logs, seconds, run, kept.take)
    print("\n" + table(kept.rows, heading=True))
    failed = sum(not row.passed for row in kept.rows)
    print(f"\n{failed} of {len(kept.rows)} failed" if failed else "\nall passed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit for all parts")
    seconds = parser.parse_args().seconds
    out = Path(os.environ["OUT"]) if os.environ.get("OUT") else None
    logs = ROOT / "build" / "gpu-check"
    return check(device_facts(), RESULTS, logs, out, seconds, run_command)


if __name__ == "__main__":
    sys.exit(main())
