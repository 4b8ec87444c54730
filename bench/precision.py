"""What smaller state and bfloat16 parameters cost a training, and what they save.

    python bench/precision.py                  under five minutes on two CPU cores
    python bench/precision.py --steps 500      as long as train_lm.py trains

Trains the small model of train_lm.py once in each mode, from the same weights and on the same
batches, all in turns step by step. Ends in a table, with its figures in bench/results.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lm.comparison import Comparison
from lm.corpus import tokenise
from lm.documents import read_documents
from lm.errors import InputError
from lm.files import write_whole
from lm.recipe import BETAS, EPS, MAX_NORM, SIZES, TOKENS, WEIGHT_DECAY
from lm.report import machine
from lm.run import Run, Update
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fusedstep

STEPS = 300
WANTED = 0.5  # percent of the float32 loss that smaller state may change
RESULTS = Path(__file__).parent / "results"
REFERENCE = "float32"


@dataclass(frozen=True)
class Mode:
    """The dtype of the parameters, which is that of the gradients too, and our options."""

    params: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)
    held_to: float | None = None  # percent

    def update(self, model: nn.Module) -> tuple[torch.optim.Optimizer, Update]:
        """For Run: turns the model into this mode's dtype, in place, and makes its optimizer."""
        groups = fusedstep.param_groups(model.to(self.params), WEIGHT_DECAY)
        optimizer = fusedstep.AdamW(groups, betas=BETAS, eps=EPS, max_norm=MAX_NORM, **self.options)

        def update() -> Tensor:
            optimizer.step()
            return optimizer.grad_norm

        return optimizer, update


MODES = {
    REFERENCE: Mode(),
    "bfloat16 state": Mode(options={"state_dtype": torch.bfloat16}, held_to=WANTED),
    "int8 state": Mode(options={"state_dtype": "int8"}, held_to=WANTED),
    "bfloat16, float32 master": Mode(torch.bfloat16, {"master": "float32"}),
    "bfloat16, remainder": Mode(torch.bfloat16, {"master": "remainder"}),
    "bfloat16, stochastic": Mode(torch.bfloat16, {"stochastic_rounding": True}),
    "bfloat16, to nearest": Mode(torch.bfloat16),
}


def bytes_per_parameter(run: Run) -> tuple[float, float]:
    """Of the parameters and of all the state that the optimizer keeps for them."""
    params = list(run.model.parameters())
    count = sum(param.numel() for param in params)
    entries = (entry for state in run.optimizer.state.values() for entry in state.values())
    state = sum(entry.nbytes for entry in entries if isinstance(entry, Tensor))
    return sum(param.nbytes for param in params) / count, state / count


def results(comparison: Comparison) -> dict[str, dict[str, float]]:
    """The figures of each mode after the last step; loss in nats."""
    losses = comparison.validations[-1]
    found = {}
    for name, run in comparison.runs.items():
        params, state = bytes_per_parameter(run)
        seconds = [step[name]["optimizer_seconds"] for step in comparison.steps]
        found[name] = {
            "validation_loss": losses[name],
            "difference_percent": 100 * (losses[name] / losses[REFERENCE] - 1),
            "parameter_bytes": params,
            "state_bytes": state,
            "step_ms": 1e3 * statistics.median(seconds),
        }
    return found


def table(found: dict[str, dict[str, float]]) -> Table:
    """`results` for people."""
    view = Table("", title="Same weights, same batches, AdamW", caption_justify="left")
    for heading in ("validation loss", "difference", "wanted", "state B", "all B", "clip + step"):
        view.add_column(heading, justify="right")
    for name, row in found.items():
        held_to, difference = MODES[name].held_to, row["difference_percent"]
        wanted = ""
        if held_to is not None:
            wanted = f"{held_to} % {'met' if abs(difference) <= held_to else 'missed'}"
        view.add_row(
            *(name, f"{row['validation_loss']:.4f}", f"{difference:+.2f} %", wanted),
            *(
                f"{b:.2f}"
                for b in (row["state_bytes"], row["state_bytes"] + row["parameter_bytes"])
            ),
            f"{row['step_ms']:.2f} ms",
        )
    view.caption = "Bytes of each parameter, counted from the tensors; medians of the times"
    return view


def draw(comparison: Comparison, found: dict[str, dict[str, float]], path: Path) -> None:
    """Left, how far each mode's validation loss is from float32's; right, the bytes it keeps."""
    figure = Figure(figsize=(12, 5), dpi=150, layout="constrained")
    losses, memory = figure.subplots(1, 2)
    losses.axhspan(-WANTED, WANTED, color="0.9", label=f"{WANTED} %")
    later = comparison.validations[1:]  # before the first step, nothing differs but the rounding
    steps = [validation["step"] for validation in later]
    for at, (name, row) in enumerate(found.items()):
        differences = [100 * (v[name] / v[REFERENCE] - 1) for v in later]
        losses.plot(steps, differences, marker="o", markersize=4, color=f"C{at}", label=name)
        memory.barh(at, row["parameter_bytes"], color=f"C{at}", alpha=0.4)
        memory.barh(at, row["state_bytes"], left=row["parameter_bytes"], color=f"C{at}")
    losses.set(xlabel="step", title="Validation loss, difference to float32 in percent")
    losses.legend(frameon=False, fontsize=8)
    memory.set_yticks(range(len(found)), list(found))
    memory.invert_yaxis()
    memory.set(xlabel="bytes a parameter", title="Parameters (pale) and state")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_whole(path, lambda file: file.write(png.getvalue()))


def study(comparison: Comparison, out: Path, console: Console) -> dict[str, dict[str, float]]:
    """Trains every mode to the end; writes precision.json and precision.png."""
    recipe = comparison.recipe
    for _ in track(range(recipe.steps), "training every mode", console=console):
        comparison.advance()
    found = results(comparison)
    content = {
        "results": found,
        "settings": recipe.flat(),
        "machine": machine(recipe.device),
        "validations": comparison.validations,
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "precision.json", lambda file: file.write(text.encode()))
    draw(comparison, found, out / "precision.png")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default: {STEPS}")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of what is written")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    console = Console(highlight=False)
    console.width = max(console.width, 110)  # a narrow terminal wraps; a log file need not
    recipe = replace(SIZES["small"], steps=options.steps, seed=options.seed)
    corpus = tokenise(read_documents(None), TOKENS["small"], console.print)
    updates: dict[str, Callable] = {name: mode.update for name, mode in MODES.items()}
    try:
        found = study(Comparison(recipe, corpus, updates), options.out, console)
    except InputError as error:  # a loss that is not finite
        raise SystemExit(f"bench/precision.py: {error}") from None
    console.print(table(found))
    console.print(f"Figure and figures: {options.out}", soft_wrap=True)


if __name__ == "__main__":
    main()
