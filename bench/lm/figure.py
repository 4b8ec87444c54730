"""The figure of a comparison: both loss curves, how far they part, and what a step costs."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .comparison import NAMES, Comparison
from .files import write_whole

COLOURS = {"torch": "#e8743b", "fusedstep": "#1b5e9e"}
LABELS = {
    "torch": "torch: clip_grad_norm_, AdamW(fused=True)",
    "fusedstep": "fusedstep: AdamW(max_norm=1.0)",
}


def draw(comparison: Comparison, found: dict, path: Path) -> None:
    """Write the figure as a PNG; `found` is what `report.results` gave."""
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
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_whole(path, lambda file: file.write(png.getvalue()))


def _losses(axes: Axes, comparison: Comparison, found: dict) -> None:
    steps = [record["step"] for record in comparison.steps]
    # The curves lie on each other: a wide pale one below a thin dark one shows both.
    for name, width, alpha in zip(NAMES, (4, 1), (0.45, 1), strict=True):
        losses = [record[name]["loss"] for record in comparison.steps]
        axes.plot(steps, losses, color=COLOURS[name], lw=width, alpha=alpha, label=LABELS[name])
    for name, size in zip(NAMES, (10, 5), strict=True):
        axes.plot(
            [record["step"] for record in comparison.validations],
            [record[name] for record in comparison.validations],
            "o",
            markersize=size,
            color=COLOURS[name],
            markeredgecolor="white",
            clip_on=False,
            zorder=3,
            label=f"validation, {name}: {found['validation_loss'][name]:.4f} at the end",
        )
    uniform = found["uniform_guess_loss"]
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
        (record["step"], abs(record["torch"]["loss"] - record["fusedstep"]["loss"]))
        for record in comparison.steps
    ]
    different = [pair for pair in pairs if pair[1] > 0]
    if different:
        axes.plot(*zip(*different, strict=True), ".", markersize=3, color="0.3")
        axes.set_yscale("log")
    axes.set_title("Difference of the training losses", loc="left")
    note = f"equal in {len(pairs) - len(different)} of {len(pairs)} steps"
    axes.annotate(note, (1, 0.04), xycoords="axes fraction", ha="right", color="0.4")


def _times(axes: Axes, comparison: Comparison, found: dict) -> None:
    steps = [record["step"] for record in comparison.steps]
    for name in NAMES:
        times = [1e3 * record[name]["optimizer_seconds"] for record in comparison.steps]
        median = found["median_optimizer_ms"][name]
        axes.plot(steps, times, ".", markersize=3, color=COLOURS[name], alpha=0.5)
        axes.axhline(median, color=COLOURS[name], label=f"{name} {median:.2f}")
    # Outliers, where the machine did something else, are cut off: they would flatten the rest.
    axes.set_ylim(0, 2 * max(found["median_optimizer_ms"].values()))
    axes.set_title("Clip + optimizer step in ms, and medians", loc="left", pad=24)
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.03, 0.97))
