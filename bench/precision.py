"""What smaller state and bfloat16 parameters cost a training, and what they save.

    python -m bench.precision                  under five minutes on two CPU cores
    python -m bench.precision --steps 500      as long as bench.train_lm trains

Trains the small model of bench.train_lm once in each mode, from the same weights and on the same
batches, all in turns step by step. Prints a table; the results and a figure are in bench/results.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from bench.command import Parser, count, exit_status, make_folder, seed
from bench.measure import machine
from bench.record import RESULTS, write_json, write_png
from bench.studies.language_model.comparison import Comparison
from bench.studies.language_model.corpus import read_documents, tokenise
from bench.studies.language_model.training import SIZES, TOKENS, Run, Update, fused_update

STEPS = 300
WANTED = 0.5  # percent of the float32 loss that smaller state may change
REFERENCE = "float32"


@dataclass(frozen=True)
class Mode:
    """The dtype of parameters and gradients, and the options of fusedstep.AdamW."""

    params: torch.dtype = torch.float32
    options: Mapping[str, Any] = field(default_factory=dict)
    held_to: float | None = None  # percent of the float32 loss

    def update(self, model: nn.Module) -> tuple[torch.optim.Optimizer, Update]:
        """For Run: turns the model into this mode's dtype, in place, and makes its optimizer."""
        return fused_update(model.to(self.params), **self.options)


MODES = {
    REFERENCE: Mode(),
    "bfloat16 state": Mode(options={"state_dtype": torch.bfloat16}, held_to=WANTED),
    "int8 state": Mode(options={"state_dtype": "int8"}, held_to=WANTED),
    "bfloat16, float32 master": Mode(torch.bfloat16, {"master": "float32"}),
    "bfloat16, remainder": Mode(torch.bfloat16, {"master": "remainder"}),
    "bfloat16, correction": Mode(torch.bfloat16, {"master": "correction"}),
    "bfloat16, correction, int8 state": Mode(
        torch.bfloat16, {"master": "correction", "state_dtype": "int8"}
    ),
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


@dataclass(frozen=True)
class Result:
    """One mode after the last step: loss in nats, bytes of each parameter, median time."""

    validation_loss: float
    difference_percent: float  # to float32's loss
    parameter_bytes: float
    state_bytes: float
    step_ms: float


Results = Mapping[str, Result]  # by the mode's name


def results(comparison: Comparison) -> Results:
    """The figures of each mode after the last step."""
    losses = comparison.validations[-1].losses
    found = {}
    for name, run in comparison.runs.items():
        seconds = [step.runs[name].optimizer_seconds for step in comparison.steps]
        found[name] = Result(
            losses[name],
            100 * (losses[name] / losses[REFERENCE] - 1),
            *bytes_per_parameter(run),
            step_ms=1e3 * statistics.median(seconds),
        )
    return found


def table(found: Results) -> Table:
    """The results for people."""
    view = Table("", title="Same weights, same batches, AdamW", caption_justify="left")
    for heading in ("validation loss", "difference", "wanted", "state B", "all B", "clip + step"):
        view.add_column(heading, justify="right")
    for name, row in found.items():
        held_to, wanted = MODES[name].held_to, ""
        if held_to is not None:
            wanted = f"{held_to} % {'met' if abs(row.difference_percent) <= held_to else 'missed'}"
        view.add_row(
            name,
            f"{row.validation_loss:.4f}",
            f"{row.difference_percent:+.2f} %",
            wanted,
            f"{row.state_bytes:.2f}",
            f"{row.state_bytes + row.parameter_bytes:.2f}",
            f"{row.step_ms:.2f} ms",
        )
    view.caption = "Bytes of each parameter, counted from the tensors; medians of the times"
    return view


def draw(comparison: Comparison, found: Results, path: Path) -> None:
    """Left: how far each mode's validation loss is from float32's; right: the bytes it keeps."""
    figure = Figure(figsize=(12, 5), dpi=150, layout="constrained")
    losses, memory = figure.subplots(1, 2)
    losses.axhspan(-WANTED, WANTED, color="0.9", label=f"{WANTED} %")
    later = comparison.validations[1:]  # before the first step, nothing differs but the rounding
    steps = [validation.step for validation in later]
    for at, (name, row) in enumerate(found.items()):
        differences = [100 * (v.losses[name] / v.losses[REFERENCE] - 1) for v in later]
        losses.plot(steps, differences, marker="o", markersize=4, color=f"C{at}", label=name)
        memory.barh(at, row.parameter_bytes, color=f"C{at}", alpha=0.4)
        memory.barh(at, row.state_bytes, left=row.parameter_bytes, color=f"C{at}")
    losses.set(xlabel="step", title="Validation loss, difference to float32 in percent")
    losses.legend(
        frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1)
    )
    memory.set_yticks(range(len(found)), list(found))
    memory.invert_yaxis()
    memory.set(xlabel="bytes a parameter", title="Parameters (pale) and state")
    write_png(figure, path)


def study(comparison: Comparison, out: Path, console: Console) -> Results:
    """Trains every mode to the end; writes precision.json and precision.png."""
    recipe = comparison.recipe
    for _ in track(range(recipe.steps), "training every mode", console=console):
        comparison.advance()
    found = results(comparison)
    content = {
        "results": {name: asdict(result) for name, result in found.items()},
        "settings": recipe.flat(),
        "machine": machine(torch.device(recipe.device)),
        "validations": [validation.flat() for validation in comparison.validations],
    }
    write_json(content, out / "precision.json")
    draw(comparison, found, out / "precision.png")
    return found


def run(arguments: list[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--steps", type=count, default=STEPS, help=f"default: {STEPS}")
    parser.add_argument("--seed", type=seed, default=0, help="of weights and batches (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    make_folder(options.out)
    console = Console(highlight=False)
    console.width = max(console.width, 120)  # a narrow terminal wraps; a log file need not
    recipe = replace(SIZES["small"], steps=options.steps, seed=options.seed)
    corpus = tokenise(read_documents(None), TOKENS["small"], console.print)
    updates = {name: mode.update for name, mode in MODES.items()}
    console.print(table(study(Comparison(recipe, corpus, updates), options.out, console)))
    console.print(f"Figure and results: {options.out}", soft_wrap=True)
    return 0


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 if the user should change something, 130 after Ctrl-C."""
    return exit_status("precision", lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
