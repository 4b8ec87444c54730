"""How a stage's script runs its checks: one after another, and none can lose another's rows.

    python -m bench.gpu.NAME [--scale full|host|quick] [--share I/N] [--done K]

A row is printed as soon as it exists. After an exception the next check runs. After an error that
the CUDA context does not survive, the process ends, and bench.gpu.runner starts another one that
goes on after the check that failed; so it does after a crash or a check that runs over.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Literal

from bench.gpu.rows import BROKEN, CHECK, Row

Scale = Literal["full", "host", "quick"]  # for a GPU; for a rehearsal on a CPU; and a brief one
Check = tuple[str, Callable[[], None]]  # a name, and what prints rows


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of every stage's script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", choices=("full", "host", "quick"), default="full")
    parser.add_argument("--share", default="0/1", help="I/N: the checks I, I + N, ...")
    parser.add_argument("--done", type=int, default=0, help="checks of this share to leave out")
    return parser.parse_args(argv)


class Reporter:
    """Makes rows; how fast something is counts only on a GPU, so only at full scale."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    def row(self, name: str, result: str, **figures: object) -> None:
        """What is only reported."""
        Row(name, result, figures=figures).show()

    def right(self, name: str, result: str, target: str, passed: bool) -> None:
        """What must hold anywhere."""
        Row(name, result, target, passed).show()

    def fast(self, name: str, result: str, aim: str, reached: bool, **figures: object) -> None:
        """What is wanted of a GPU; `aim`: "" where nothing is."""
        judged = bool(aim) and self.scale == "full"
        Row(name, result, aim if judged else "", reached if judged else None, figures).show()


def run(checks: Sequence[Check], asked: argparse.Namespace) -> None:
    """Runs what `asked` selects."""
    at, of = map(int, asked.share.split("/"))
    for number, (name, check) in enumerate(checks[at::of]):
        if number < asked.done:
            continue
        print(f"{CHECK}{number} {name}", flush=True)
        try:
            check()
        except Exception as error:
            traceback.print_exc()
            told = f"{type(error).__name__}: {error}".split("\n")[0]
            Row(name, told[:200], "to end without an error", False).show()
        free_memory()


def free_memory() -> None:
    """Gives back what a check held; ends the process where the CUDA context is lost."""
    gc.collect()
    torch = sys.modules.get("torch")  # which a check has imported, if it has used the GPU
    if torch is None or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(BROKEN)  # an ordinary exit would free memory through the lost context
