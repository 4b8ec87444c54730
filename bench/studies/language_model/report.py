"""What a comparison shows: progress while it trains, then a table, a figure and a JSON file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.drawing import BLUE, ORANGE
from bench.measure import machine
from bench.record import write_json, write_png
from bench.studies.language_model.comparison import NAMES, Comparison, Step

LINES = 20  # printed over a whole training where there is no terminal
COLOURS = {"torch": ORANGE, "fusedstep": BLUE}
LABELS = {
    "torch": "torch: clip_grad_norm_, AdamW(fused=True)",
    "fusedstep": "fusedstep: AdamW(max_norm=1.0)",
}

# --- while it trains ---


class Display:
    """A live table and a bar, or plain lines without a terminal.

    The comparison has `total` steps, of which `done` were taken before.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console, self._total = console, total
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("lr {task.fields[rate]:.2e}"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total, completed=done, rate=0.0)
        self._live = Live(self._bar, console=console, refresh_per_second=4)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, step: Step) -> None:
        """Show the latest step."""
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step.step, rate=step.rate)
            self._live.update(Group(self._table(step), self._bar))
        elif step.step % max(1, self._total // LINES) == 0 or step.step == self._total:
            self._console.print(self._line(step), soft_wrap=True)

    def _table(self, step: Step) -> Table:
        table = Table("run", box=None, expand=True)
        for heading in ("loss", "gradient norm", "tokens/s", "optimizer ms"):
            table.add_column(heading, justify="right")
        for name in NAMES:
            table.add_row(name, *_figures(step, name))
        return table

    def _line(self, step: Step) -> str:
        head = f"step {step.step}/{self._total}  lr {step.rate:.2e}"
        for name in NAMES:
            loss, norm, speed, milliseconds = _figures(step, name)
            head += f"  | {name} loss {loss} norm {norm} {speed} tokens/s opt {milliseconds} ms"
        return head


def _figures(step: Step, name: str) -> tuple[str, str, str, str]:
    measured = step.runs[name]
    return (
        f"{measured.loss:.4f}",
        f"{measured.norm:.3f}",
        f"{step.batch_tokens / measured.seconds:,.0f}",
        f"{1e3 * measured.optimizer_seconds:.2f}",
    )


# --- at the end ---


@dataclass(frozen=True)
class Results:
    """The figures of a finished comparison, by run: losses in nats, times in milliseconds."""

    validation_loss: dict[str, float]
    uniform_guess_loss: float
    largest_parameter_difference: float
    largest_parameter_difference_in: str
    median_optimizer_ms: dict[str, float]
    optimizer_ratio: float
    median_tokens_per_second: dict[str, float]


def results(comparison: Comparison) -> Results:
    """Computes them from what was measured at each step."""
    difference, parameter = comparison.largest_difference()

    def median(figure: Callable[[Step, str], float]) -> dict[str, float]:
        return {
            name: statistics.median(figure(step, name) for step in comparison.steps)
            for name in NAMES
        }

    seconds = median(lambda step, name: step.runs[name].optimizer_seconds)
    milliseconds = {name: 1e3 * value for name, value in seconds.items()}
    return Results(
        validation_loss={name: comparison.validations[-1].losses[name] for name in NAMES},
        uniform_guess_loss=math.log(comparison.recipe.shape.vocabulary),
        largest_parameter_difference=difference,
        largest_parameter_difference_in=parameter,
        median_optimizer_ms=milliseconds,
        optimizer_ratio=milliseconds["torch"] / milliseconds["fusedstep"],
        median_tokens_per_second=median(
            lambda step, name: step.batch_tokens / step.runs[name].seconds
        ),
    )


def table(found: Results) -> Table:
    """The results for people."""
    view = Table("", title="Same seed, same batches", title_style="bold")
    for heading in (*NAMES, ""):
        view.add_column(heading, justify="right")
    losses, speeds = found.validation_loss, found.median_tokens_per_second
    view.add_row(
        "validation loss, nats",
        *(f"{losses[name]:.4f}" for name in NAMES),
        f"uniform guess {found.uniform_guess_loss:.2f}",
    )
    view.add_row(
        "clip + step, median ms",
        *(f"{found.median_optimizer_ms[name]:.3f}" for name in NAMES),
        f"ratio {found.optimizer_ratio:.2f}",
    )
    view.add_row(
        "tokens/s, whole step, median",
        *(f"{speeds[name]:,.0f}" for name in NAMES),
        f"ratio {speeds['fusedstep'] / speeds['torch']:.2f}",
    )
    view.caption_justify, view.caption_style = "left", ""
    view.caption = (
        f"Largest difference between the parameters: {found.largest_parameter_difference:.2e}, "
        f"in {found.largest_parameter_difference_in}. The two runs round the norm differently, and "
        f"training amplifies every difference."
    )
    return view


def write_results(comparison: Comparison, found: Results, path: Path) -> None:
    """Settings, machine, results and every step, in one JSON object."""
    content = {
        "results": asdict(found),
        "settings": comparison.recipe.flat(),
        "machine": machine(torch.device(comparison.recipe.device)),
        "parameters": sum(p.numel() for p in comparison.runs["torch"].model.parameters()),
        "validations": [validation.flat() for validation in comparison.validations],
        "steps": [step.flat() for step in comparison.steps],
    }
    write_json(content, path)


# --- the figure ---


def draw(comparison: Comparison, found: Results, path: Path) -> None:
    """Both loss curves, the difference between them, and the time of the optimizer, as a PNG."""
    figure = Figure(figsize=(11, 5.5), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.7, 1))
    _losses(figure.add_subplot(grid[:, 0]), comparison, found)
    _differences(figure.add_subplot(grid[0, 1]), comparison)
    _times(figure.add_subplot(grid[1, 1]), comparison, found)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.set_xlabel("step")
        axes.set_xlim(0, len(comparison.steps))
    write_png(figure, path)


def _losses(axes: Axes, comparison: Comparison, found: Results) -> None:
    steps = [step.step for step in comparison.steps]
    # The curves coincide: a wide pale one below a thin dark one shows both.
    for name, width, alpha in zip(NAMES, (4, 1), (0.45, 1), strict=True):
        losses = [step.runs[name].loss for step in comparison.steps]
        axes.plot(steps, losses, color=COLOURS[name], lw=width, alpha=alpha, label=LABELS[name])
    for name, size in zip(NAMES, (10, 5), strict=True):
        axes.plot(
            [validation.step for validation in comparison.validations],
            [validation.losses[name] for validation in comparison.validations],
            "o",
            markersize=size,
            color=COLOURS[name],
            markeredgecolor="white",
            clip_on=False,
            zorder=3,
            label=f"validation, {name}: {found.validation_loss[name]:.4f} at the end",
        )
    uniform = found.uniform_guess_loss
    axes.axhline(uniform, color="0.5", lw=1, ls=":")
    axes.annotate(
        f"uniform guess {uniform:.2f}",
        (1, uniform),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        color="0.4",
    )
    axes.set_ylabel("nats per token")
    axes.set_title("Loss", loc="left")
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))


def _differences(axes: Axes, comparison: Comparison) -> None:
    pairs = [
        (step.step, abs(step.runs["torch"].loss - step.runs["fusedstep"].loss))
        for step in comparison.steps
    ]
    different = [pair for pair in pairs if pair[1] > 0]
    if different:
        axes.plot(*zip(*different, strict=True), ".", markersize=3, color="0.3")
        axes.set_yscale("log")
    axes.set_title("Difference of the training losses", loc="left")
    note = f"equal in {len(pairs) - len(different)} of {len(pairs)} steps"
    axes.annotate(note, (1, 0.04), xycoords="axes fraction", ha="right", color="0.4")


def _times(axes: Axes, comparison: Comparison, found: Results) -> None:
    steps = [step.step for step in comparison.steps]
    for name in NAMES:
        times = [1e3 * step.runs[name].optimizer_seconds for step in comparison.steps]
        median = found.median_optimizer_ms[name]
        axes.plot(steps, times, ".", markersize=3, color=COLOURS[name], alpha=0.5)
        axes.axhline(median, color=COLOURS[name], label=f"{name} {median:.2f}")
    # Outliers, where the machine was busy with something else, are cut off.
    axes.set_ylim(0, 2 * max(found.median_optimizer_ms.values()))
    axes.set_title("Clip + optimizer step in ms, and medians", loc="left", pad=24)
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.03, 0.97))
