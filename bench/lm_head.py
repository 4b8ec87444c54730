"""The last layer of a language model solved instead of trained, after "Language Mixers III".

    python -m bench.lm_head               under five minutes on two CPU cores
    python -m bench.lm_head --steps 100   a shorter training by AdamW
    python -m bench.lm_head --model gpt   the last layer of the model that bench.train_lm trained

A linear language mixer on real text: its last layer in closed form on all of the text, compared
with AdamW after 1, 10, 100 and 1000 steps; then every Newton variant from the same start on the
same batch. Prints tables with the reasons; a figure and all numbers are in bench/results.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.command import (
    INTERRUPTED,
    InputError,
    Parser,
    count,
    exit_status,
    make_folder,
    positive,
    seed,
)
from bench.measure import machine, now
from bench.record import RESULTS, commit, write_json
from bench.studies.language_model.corpus import Corpus, read_documents, tokenise
from bench.studies.last_layer import gpt, report, study
from bench.studies.last_layer.problem import Data, Settings
from bench.studies.stages import Stages, Stopped, wide_console

USUAL: dict[str, Settings | gpt.Settings] = {"mixer": Settings(), "gpt": gpt.Settings()}
# The options of one model alone: the settings that they change, types and help.
OWN: dict[str, dict[str, tuple[str, Callable[[str], Any], str]]] = {
    "mixer": {
        "--steps": ("steps", count, "of AdamW"),
        "--lr": ("rate", positive, "AdamW's, at its peak"),
        "--newton-tokens": ("newton_tokens", count, "in the batch of the Newton variants"),
        "--newton-seconds": ("newton_seconds", positive, "for each variant"),
        "--newton-iterations": ("newton_iterations", count, "of each variant, at most"),
    },
    "gpt": {
        "--checkpoint": ("checkpoint", Path, "of bench.train_lm"),
        "--newton-steps": ("steps", count, "of Newton-CG, at most"),
    },
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; raises InputError where it makes no sense."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", choices=USUAL, default="mixer", help="default: mixer")
    add("--data", type=Path, metavar="FILE_OR_FOLDER", help="other UTF-8 text than the default")
    add("--tokens", type=count, help="of training text to solve for "
        f"(default: all, or {USUAL['gpt'].tokens} of the gpt)")  # fmt: skip
    add("--seed", type=seed, default=0, help="of weights and batches (default: 0)")
    add("--threads", type=count, help="CPU threads (default: torch's choice)")
    add("--out", type=Path, default=RESULTS, help="folder for the results")
    for model, options in OWN.items():
        group = parser.add_argument_group(f"--model {model}")
        for option, (field, kind, text) in options.items():
            group.add_argument(
                option, type=kind, help=f"{text} (default: {getattr(USUAL[model], field)})"
            )
    return parser.parse_args(arguments)


def choose(given: argparse.Namespace) -> Settings | gpt.Settings:
    """The model's settings, with the changes of the command line."""
    changes: dict[str, Any] = {"seed": given.seed}
    if given.tokens is not None:
        changes["tokens"] = given.tokens
    for model, options in OWN.items():
        for option, (field, _, _) in options.items():
            value = getattr(given, option.strip("-").replace("-", "_"))
            if value is None:
                continue
            if model != given.model:
                raise InputError(f"{option} is for --model {model}, got --model {given.model}")
            changes[field] = value
    return replace(USUAL[given.model], **changes)


def conditions() -> dict[str, object]:
    """What the times were taken on, and how busy it was then (the last minute's load)."""
    return {
        **machine(torch.device("cpu")),
        "commit": commit(),
        "date": now(),
        "load": os.getloadavg()[0],
    }


def write(
    found: study.Found | gpt.Found,
    settings: Settings | gpt.Settings,
    where: dict[str, object],
    path: Path,
) -> None:
    """`where`: the conditions before anything was timed."""
    flat = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    write_json({"results": asdict(found), "settings": flat, "machine": where}, path)


def read_corpus(given: argparse.Namespace, vocabulary: int, console: Console) -> Corpus:
    return tokenise(read_documents(given.data), vocabulary, console.print)


def of_mixer(given: argparse.Namespace, settings: Settings, console: Console) -> None:
    """Studies the linear mixer; writes lm_head.json and lm_head.png."""
    data = Data.of(read_corpus(given, settings.vocabulary, console), settings)
    where = conditions()
    with Stages(console) as stages:
        found = study.study(data, settings, stages)
    write(found, settings, where, given.out / "lm_head.json")
    report.draw(found, given.out / "lm_head.png")
    report.show(found, console)


def of_gpt(given: argparse.Namespace, settings: gpt.Settings, console: Console) -> None:
    """Solves the last layer of bench.train_lm's model; writes lm_head_gpt.json."""
    trained = gpt.Trained(settings.checkpoint)
    corpus = read_corpus(given, trained.tokenizer_size, console)
    where = conditions()
    with Stages(console) as stages:
        found = gpt.study(trained, corpus, settings, stages)
    write(found, settings, where, given.out / "lm_head_gpt.json")
    console.print(gpt.table(found))


def run(arguments: list[str], console: Console) -> int:
    """Exit status: 0 at the end, 130 after Ctrl-C."""
    given = parse(arguments)
    settings = choose(given)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    make_folder(given.out)
    try:
        if isinstance(settings, Settings):
            of_mixer(given, settings, console)
        else:
            of_gpt(given, settings, console)
    except Stopped:
        console.print("Stopped; nothing was written.")
        return INTERRUPTED
    console.print(f"Figures: {given.out}", soft_wrap=True)
    return 0


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 if the user should change something, 130 after Ctrl-C."""
    return exit_status("lm_head", lambda: run(arguments, wide_console()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
