"""From a recipe and a text to results on the disk, with a checkpoint on the way."""

import math
from pathlib import Path

from rich.console import Console

from . import checkpoint, figure, report
from .comparison import Comparison
from .corpus import Corpus
from .interruption import Interruption
from .progress import Display
from .recipe import Recipe


def compare(
    recipe: Recipe, corpus: Corpus, out: Path, console: Console, *, resume: bool, save_every: int
) -> bool:
    """Train both runs to the end, or until Ctrl-C; tells whether the end was reached.

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
        with Display(console, recipe.steps, done) as display:
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
    report.write_json(comparison, found, out / "results.json")
    figure.draw(comparison, found, out / "losses.png")
    console.print(report.table(found))
    console.print(f"Figure, figures and checkpoint: {out}", soft_wrap=True)
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
