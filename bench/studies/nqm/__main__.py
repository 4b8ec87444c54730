"""The noisy quadratic model: which batch size, which rate, which schedule, and does momentum help?

    python -m bench.studies.nqm           about a minute on one CPU core
    python -m bench.studies.nqm --quick   a few batch sizes and 30 bins: seconds

Draws the figures of Zhang et al. 2019 (arXiv 1907.04164) anew and prints each of the paper's claims
as held or not, with the numbers. Everything is in bench/results/nqm.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bench.command import INTERRUPTED, Parser, exit_status, make_folder
from bench.record import RESULTS, commit, write_json
from bench.studies.claims import Claim, table
from bench.studies.nqm.claims import CLAIMS
from bench.studies.nqm.figures import draw
from bench.studies.nqm.sweep import QUICK, Found, Settings, sweep
from bench.studies.stages import Stages, Stopped, wide_console


def write(found: Found, claims: list[Claim], path: Path) -> None:
    """All numbers, as JSON."""
    results = {
        line: {str(size): result._asdict() for size, result in sorted(results.items())}
        for line, results in found.lines.items()
    }
    schedules = {str(size): schedule._asdict() for size, schedule in found.schedules.items()}
    content = {
        "claims": [asdict(claim) for claim in claims],
        "lines": results,
        "schedules": schedules,
        "settings": asdict(found.settings),
        "commit": commit(),
    }
    write_json(content, path)


def run(arguments: list[str], console: Console) -> int:
    """Exit status: 0 where every claim held, 1 where one did not, 130 after Ctrl-C."""
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a few batch sizes, in seconds")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "nqm", help="folder for figures and numbers"
    )
    given = parser.parse_args(arguments)
    make_folder(given.out)
    try:
        with Stages(console) as stages:
            found = sweep(QUICK if given.quick else Settings(), stages)
    except Stopped:
        console.print("Stopped; nothing was written.")
        return INTERRUPTED
    claims = [claim(found) for claim in CLAIMS]
    write(found, claims, given.out / "nqm.json")
    figures = draw(found, given.out)
    console.print(table("Claims of the paper", {"": claims}))
    console.print("Figures: " + ", ".join(map(str, figures)), soft_wrap=True)
    return 0 if all(claim.held for claim in claims) else 1


def main(arguments: list[str]) -> int:
    """Exit status as `run`, or 2 if the user should change something."""
    return exit_status("nqm", lambda: run(arguments, wide_console()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
