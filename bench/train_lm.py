"""Trains a language model on real text twice: by torch's clip and AdamW, and by the fused step.

    python -m bench.train_lm                      about two minutes on two CPU cores
    python -m bench.train_lm --size gpt2          GPT-2 124M, for a GPU
    python -m bench.train_lm --data my/texts      other text than Python's standard library
    python -m bench.train_lm --resume             continue after Ctrl-C, bit for bit

Both runs start from the same weights and see the same batches, taking turns step by step.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from bench.command import (
    INTERRUPTED,
    InputError,
    Interruption,
    Parser,
    count,
    exit_status,
    make_folder,
    number,
    positive,
    printable,
    seed,
    share,
)
from bench.studies.language_model import checkpoint, report
from bench.studies.language_model.comparison import Comparison
from bench.studies.language_model.corpus import (
    MOST_CHARACTERS,
    Corpus,
    read_documents,
    tokenise,
)
from bench.studies.language_model.training import SIZES, TOKENS, Recipe
from fusedstep import build

sequences = number(int, "a number of sequences from 1 to 65536", lambda n: 1 <= n <= 65536)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; raises InputError where it makes no sense."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--size", choices=SIZES, default="small", help="model and recipe (default: small)")
    add(
        "--data",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help=f"UTF-8 text to train on instead, up to {MOST_CHARACTERS // 10**6} million characters",
    )
    add("--out", type=Path, default=Path("runs/train_lm"), help="folder for the results")
    add("--resume", action="store_true", help="continue from the checkpoint in --out")
    add("--steps", type=count, help="optimizer steps; warm-up, decay and ramp scale with it")
    add("--batch", type=sequences, help="sequences in a batch, after the ramp")
    add("--micro-batch", type=sequences, help="sequences that go through the model at once")
    add("--lr", type=positive, dest="peak_rate", help="peak learning rate")
    add("--dropout", type=share, default=0.0, help="default: 0")
    add("--seed", type=seed, default=0, help="default: 0")
    add("--save-every", type=count, default=100, help="steps between checkpoints (default: 100)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if any")
    add(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the matrix products. auto: bfloat16 on a GPU that has it; float32 on a CPU, as "
        "only the newest CPUs multiply bfloat16 faster",
    )
    return parser.parse_args(arguments)


def choose_recipe(given: argparse.Namespace) -> Recipe:
    """The size's recipe for this device, with the changes of the command line."""
    lack = build.CUDA_REASON
    if not torch.cuda.is_available():
        lack = "this PyTorch finds no GPU"
    if given.device == "cuda" and lack:
        raise InputError(f"--device cuda cannot be used: {lack}")
    device = "cuda" if given.device != "cpu" and not lack else "cpu"
    precision = given.precision
    if precision == "auto":
        has_bfloat16 = device == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bfloat16" if has_bfloat16 else "float32"

    recipe = SIZES[given.size]
    changes = {
        name: getattr(given, name)
        for name in ("steps", "batch", "micro_batch", "peak_rate")
        if getattr(given, name) is not None
    }
    shape = replace(recipe.shape, dropout=given.dropout)
    return replace(
        recipe, shape=shape, seed=given.seed, device=device, precision=precision, **changes
    )


def make_repeatable(device: str) -> None:
    """Select algorithms that give the same bits each time, as --resume promises (a CPU's do)."""
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def compare(
    recipe: Recipe, corpus: Corpus, out: Path, console: Console, *, resume: bool, save_every: int
) -> bool:
    """Train both runs to the end, or until Ctrl-C; True if the end was reached.

    Leaves `checkpoint.pt` in `out` in both cases, and at the end `losses.png` and
    `results.json`. Raises InputError where the text, the checkpoint or the disk forbids it.
    """
    comparison = Comparison(recipe, corpus)
    kept = out / "checkpoint.pt"
    if resume:
        checkpoint.resume(comparison, corpus.fingerprint, kept)
        console.print(f"Continuing after step {len(comparison.steps)}.")
    _introduce(comparison, corpus, console)

    done = len(comparison.steps)
    with Interruption() as interruption:
        with report.Display(console, recipe.steps, done) as display:
            while not comparison.finished and not interruption.requested:
                display.show(comparison.advance())
                if len(comparison.steps) % save_every == 0:
                    checkpoint.save(comparison, corpus.fingerprint, kept)
        checkpoint.save(comparison, corpus.fingerprint, kept)
    if not comparison.finished:
        console.print(
            f"Stopped after step {len(comparison.steps)} of {recipe.steps}; "
            f"the same command with --resume continues.",
        )
        return False

    found = report.results(comparison)
    try:
        report.write_results(comparison, found, out / "results.json")
        report.draw(comparison, found, out / "losses.png")
    except OSError as error:
        raise InputError(f"the results in {out} cannot be written: {error}") from error
    console.print(report.table(found))
    console.print(f"Figure, results and checkpoint: {printable(out)}", soft_wrap=True)
    return True


def _introduce(comparison: Comparison, corpus: Corpus, console: Console) -> None:
    recipe, model = comparison.recipe, comparison.runs["torch"].model
    parameters = [p.numel() for p in model.parameters()]
    console.print(
        f"{len(corpus.training) / 1e6:.2f} M training tokens, "
        f"{len(corpus.validation) / 1e6:.2f} M for validation; "
        f"{sum(parameters) / 1e6:.2f} M parameters in {len(parameters)} tensors; "
        f"{recipe.steps} steps on {recipe.device} in {recipe.precision}. "
        f"A uniform guess has a loss of {math.log(recipe.shape.vocabulary):.2f} nats.",
    )


def train(arguments: list[str], console: Console) -> int:
    """Exit status: 0 at the end, 130 after Ctrl-C."""
    given = parse(arguments)
    recipe = choose_recipe(given)
    make_repeatable(recipe.device)
    make_folder(given.out)
    documents = read_documents(given.data)
    if documents.left_out:
        first, others = printable(documents.left_out[0]), len(documents.left_out) - 1
        console.print(
            f"Left out what is not a file of UTF-8 text: {first}"
            + (f" and {others} more." if others else "."),
            soft_wrap=True,
        )
    corpus = tokenise(documents, TOKENS[given.size], console.print)
    finished = compare(
        recipe, corpus, given.out, console, resume=given.resume, save_every=given.save_every
    )
    return 0 if finished else INTERRUPTED


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 if the user should change something, 130 after Ctrl-C."""
    console = Console(markup=False, highlight=False)
    return exit_status("train_lm", lambda: train(arguments, console))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
