"""The dynamics of optimization: what theory predicts of training, checked on networks that train.

    python -m bench.studies.dynamics                 two to three minutes on one CPU core
    python -m bench.studies.dynamics --quick         smaller settings: half a minute
    python -m bench.studies.dynamics edge kernel     some of the sections

One figure and a few claims for each section of the article "The dynamics of optimization"; each
claim is printed as held or not, with its numbers. Everything is in bench/results/dynamics.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bench.command import INTERRUPTED, InputError, Parser, exit_status, make_folder
from bench.record import RESULTS, commit, write_json, write_png
from bench.studies.claims import Claim, table
from bench.studies.dynamics import (
    convex,
    deep_linear,
    edge,
    generalization,
    implicit_bias,
    kernel,
    optimizers,
    scale,
)
from bench.studies.dynamics.section import Section
from bench.studies.stages import Stages, Stopped, wide_console

# In the article's order.
SECTIONS: dict[str, Section] = {
    module.SECTION.name: module.SECTION
    for module in (
        convex, generalization, implicit_bias, kernel, deep_linear, edge, scale, optimizers,
    )
}  # fmt: skip


def run(arguments: list[str], console: Console) -> int:
    """Exit status: 0 where every claim held, 1 where one did not, 130 after Ctrl-C."""
    parser = Parser(__doc__)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="smaller settings, half a minute")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "dynamics", help="folder for figures and numbers"
    )
    given = parser.parse_args(arguments)
    for name in given.sections:
        if name not in SECTIONS:
            raise InputError(f"sections: must be of {', '.join(SECTIONS)}, got {name}")
    make_folder(given.out)
    claims: dict[str, list[Claim]] = {}
    figures = []
    with Stages(console) as stages:
        for name in given.sections or SECTIONS:
            section = SECTIONS[name]
            settings = section.quick if given.quick else section.settings
            start = time.perf_counter()
            try:
                found = section.run(settings, stages)
            except Stopped:
                console.print(f"Stopped in {name}; of it nothing was written.")
                return INTERRUPTED
            seconds = time.perf_counter() - start
            claims[name] = [claim(found) for claim in section.claims]
            figures.append(given.out / f"{name}.png")
            write_png(section.draw(found), figures[-1])
            content = {
                "question": section.question,
                "claims": [asdict(claim) for claim in claims[name]],
                "settings": asdict(settings),
                "seconds": round(seconds, 1),
                "commit": commit(),
            }
            write_json(content, given.out / f"{name}.json")
    console.print(table("Claims", claims))
    console.print("Figures: " + ", ".join(map(str, figures)), soft_wrap=True)
    return 0 if all(claim.held for made in claims.values() for claim in made) else 1


def main(arguments: list[str]) -> int:
    """Exit status as `run`, or 2 if the user should change something."""
    return exit_status("dynamics", lambda: run(arguments, wide_console()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
