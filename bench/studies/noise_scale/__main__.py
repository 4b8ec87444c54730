"""The gradient noise scale of a language model over its training: how large should its batch be?

    python -m bench.studies.noise_scale           under two minutes on two CPU cores
    python -m bench.studies.noise_scale --quick   a tiny model: seconds

Trains the model of bench.train_lm on the same text, and estimates the noise scale (McCandlish et
al. 2018, arXiv 1812.06162) from the norms of the first micro-batch and of the batch. Prints each
claim as held or not; the figure and all numbers are in bench/results/nqm.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from bench.command import INTERRUPTED, Parser, exit_status, make_folder
from bench.measure import machine
from bench.record import RESULTS, commit, write_json
from bench.studies.claims import Claim, table
from bench.studies.language_model.corpus import read_documents, tokenise
from bench.studies.language_model.training import TOKENS
from bench.studies.noise_scale.claims import CLAIMS
from bench.studies.noise_scale.figure import draw
from bench.studies.noise_scale.measure import QUICK, USUAL, Found, measure
from bench.studies.stages import Stages, Stopped, wide_console


def write(found: Found, claims: list[Claim], path: Path) -> None:
    """All numbers, as JSON, which has no infinity: null."""
    steps = [{name: _finite(value) for name, value in asdict(step).items()} for step in found.steps]
    settings = found.settings
    content = {
        "claims": [asdict(claim) for claim in claims],
        "batch_sizes": settings.sizes,
        "settings": settings.recipe.flat() | {"decay": settings.decay},
        "machine": machine(torch.device(settings.recipe.device)),
        "commit": commit(),
        "steps": steps,
    }
    write_json(content, path)


def _finite(value: object) -> object:
    return value if not isinstance(value, float) or math.isfinite(value) else None


def run(arguments: list[str], console: Console) -> int:
    """Exit status: 0 where every claim held, 1 where one did not, 130 after Ctrl-C."""
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model, in seconds")
    parser.add_argument(
        "--data", type=Path, metavar="FILE_OR_FOLDER", help="UTF-8 text to train on instead"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "nqm", help="folder for the figure and the numbers"
    )
    given = parser.parse_args(arguments)
    make_folder(given.out)
    size = "tiny" if given.quick else "small"
    corpus = tokenise(read_documents(given.data), TOKENS[size], console.print)
    try:
        with Stages(console) as stages:
            found = measure(corpus, QUICK if given.quick else USUAL, stages)
    except Stopped:
        console.print("Stopped; nothing was written.")
        return INTERRUPTED
    claims = [claim(found) for claim in CLAIMS]
    write(found, claims, given.out / "noise_scale.json")
    draw(found, given.out / "noise_scale.png")
    console.print(table("Claims of the paper", {"": claims}))
    console.print(f"Figure: {given.out / 'noise_scale.png'}", soft_wrap=True)
    return 0 if all(claim.held for claim in claims) else 1


def main(arguments: list[str]) -> int:
    """Exit status as `run`, or 2 if the user should change something."""
    return exit_status("noise_scale", lambda: run(arguments, wide_console()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
