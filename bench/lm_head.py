"""The last layer of a language model solved instead of trained, after "Language Mixers III".

    python bench/lm_head.py               under five minutes on two CPU cores
    python bench/lm_head.py --steps 100   a shorter training by AdamW
    python bench/lm_head.py --model gpt   the last layer of what train_lm.py trained, solved again

A linear language mixer on real text: its last layer in closed form on all of the text, beside AdamW
after 1, 10, 100 and 1000 steps; then every Newton variant from the same start on the same batch.
Ends in tables with the reasons, and a figure and its numbers in bench/results.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from head import figure, gpt, gpt_report, record, study, table
from head.data import Data
from head.progress import Stages, Stopped
from head.settings import GPTSettings, Settings
from lm.arguments import Parser, count, positive, seed
from lm.corpus import Corpus, tokenise
from lm.documents import read_documents
from lm.errors import InputError
from rich.console import Console

RESULTS = Path(__file__).parent / "results"
INTERRUPTED = 130  # as shells count it: 128 + SIGINT
USUAL = {"mixer": Settings(), "gpt": GPTSettings()}
# Options and the settings they change: of one model alone, with their types; of both.
OWN = {
    "mixer": {
        "--steps": ("steps", count, "of AdamW"),
        "--lr": ("rate", positive, "AdamW's, at its peak"),
        "--newton-tokens": ("newton_tokens", count, "in the batch of the Newton variants"),
        "--newton-seconds": ("newton_seconds", positive, "for each variant"),
        "--newton-iterations": ("newton_iterations", count, "of each variant, at most"),
    },
    "gpt": {
        "--checkpoint": ("checkpoint", Path, "of train_lm.py"),
        "--newton-steps": ("steps", count, "of Newton-CG, at most"),
    },
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; raises InputError where it makes no sense."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=USUAL, default="mixer", help="default: mixer")
    add("--data", type=Path, metavar="FILE_OR_FOLDER", help="UTF-8 text to learn instead")
    add("--tokens", type=count, help="of training text that are solved for "
        f"(default: all, or {USUAL['gpt'].tokens} of the gpt)")  # fmt: skip
    add("--seed", type=seed, default=0, help="of weights and batches (default: 0)")
    add("--threads", type=count, help="of the CPU; PyTorch's choice if not given")
    add("--out", type=Path, default=RESULTS, help="folder of what is written")
    for model, options in OWN.items():
        group = parser.add_argument_group(f"--model {model}")
        for option, (field, kind, text) in options.items():
            group.add_argument(
                option, type=kind, help=f"{text} (default: {getattr(USUAL[model], field)})"
            )
    return parser.parse_args(arguments)


def choose(given: argparse.Namespace) -> Settings | GPTSettings:
    """The model's settings, with what the command line changes in them."""
    changes = {"seed": given.seed}
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


def read_corpus(given: argparse.Namespace, vocabulary: int, console: Console) -> Corpus:
    return tokenise(read_documents(given.data), vocabulary, console.print)


def of_mixer(given: argparse.Namespace, settings: Settings, console: Console) -> None:
    """Studies the linear mixer; writes lm_head.json and lm_head.png."""
    data = Data.of(read_corpus(given, settings.vocabulary, console), settings)
    where = record.conditions()
    with Stages(console) as stages:
        found = study.study(data, settings, stages)
    record.write(found, settings, where, given.out / "lm_head.json")
    figure.draw(found, given.out / "lm_head.png")
    table.show(found, console)


def of_gpt(given: argparse.Namespace, settings: GPTSettings, console: Console) -> None:
    """Solves the last layer of train_lm.py's model again; writes lm_head_gpt.json."""
    trained = gpt.Trained(settings.checkpoint)
    corpus = read_corpus(given, trained.tokenizer_size, console)
    where = record.conditions()
    with Stages(console) as stages:
        found = gpt.study(trained, corpus, settings, stages)
    record.write(found, settings, where, given.out / "lm_head_gpt.json")
    console.print(gpt_report.table(found))


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 for what the user should change, 130 after Ctrl-C."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 140)  # a log file need not wrap
    try:
        given = parse(arguments)
        settings = choose(given)
        if given.threads is not None:
            torch.set_num_threads(given.threads)
        try:
            given.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out: {given.out} cannot be made: {error.strerror}") from None
        (of_mixer if given.model == "mixer" else of_gpt)(given, settings, console)
    except InputError as error:
        print(f"lm_head: {error}", file=sys.stderr)
        return 2
    except Stopped:
        console.print("Stopped; nothing was written.")
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    console.print(f"Figures: {given.out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
