"""Trains a language model on real text twice, by PyTorch's clip and AdamW and by the fused step.

    python bench/train_lm.py                      about two minutes on two CPU cores
    python bench/train_lm.py --size gpt2          GPT-2 124M, for a GPU
    python bench/train_lm.py --data my/texts      other text than Python's standard library
    python bench/train_lm.py --resume             go on after Ctrl-C, bit for bit

Both runs start from the same weights and see the same batches, taking turns step by step.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from lm.arguments import Parser, count, positive, seed, share
from lm.corpus import tokenise
from lm.documents import read_documents
from lm.errors import InputError
from lm.recipe import SIZES, TOKENS, Recipe
from lm.training import compare
from rich.console import Console

import fusedstep

INTERRUPTED = 130  # as shells count it: 128 + SIGINT


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; raises InputError where it makes no sense."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=SIZES, default="small", help="model and recipe (default: small)")
    add("--data", type=Path, metavar="FILE_OR_FOLDER", help="UTF-8 text to train on instead")
    add("--out", type=Path, default=Path("runs/train_lm"), help="folder for all that is written")
    add("--resume", action="store_true", help="continue from the checkpoint in --out")
    add("--steps", type=count, help="optimizer steps; warm-up, decay and ramp scale with it")
    add("--batch", type=count, help="sequences in a batch, after the ramp")
    add("--micro-batch", type=count, help="sequences that go through the model at once")
    add("--lr", type=positive, dest="peak_rate", help="peak learning rate")
    add("--dropout", type=share, default=0.0, help="default: 0")
    add("--seed", type=seed, default=0, help="default: 0")
    add("--save-every", type=count, default=100, help="steps between checkpoints (default: 100)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is")
    add(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the matrix products. auto: bfloat16 on a GPU that has it; float32 on a CPU, as "
        "only the newest CPUs multiply bfloat16 faster, and a model this small gains little",
    )
    return parser.parse_args(arguments)


def choose_recipe(given: argparse.Namespace) -> Recipe:
    """The size's recipe with what the command line changes in it, for the device at hand."""
    lack = fusedstep.build.CUDA_REASON
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
    """Ask for algorithms that give the same bits each time, as --resume promises (a CPU's do)."""
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 for what the user should change, 130 after Ctrl-C."""
    console = Console(markup=False, highlight=False)
    try:
        given = parse(arguments)
        recipe = choose_recipe(given)
        make_repeatable(recipe.device)
        try:
            given.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out: {given.out} cannot be made: {error.strerror}") from None

        documents = read_documents(given.data)
        if documents.left_out:
            count, first = len(documents.left_out), documents.left_out[0]
            console.print(f"Left out {count} of the files, as no UTF-8 text: {first} first of all.")
        corpus = tokenise(documents, TOKENS[given.size], console.print)
        finished = compare(
            recipe, corpus, given.out, console, resume=given.resume, save_every=given.save_every
        )
    except InputError as error:
        print(f"train_lm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0 if finished else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
