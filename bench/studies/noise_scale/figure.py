"""The figure: the noise scale over training, what it is made of, and the line it rests on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.drawing import BLUE, GREEN, GREY, ORANGE
from bench.record import write_png
from bench.studies.noise_scale.measure import Found


def draw(found: Found, path: Path) -> None:
    """Three panels, as a PNG."""
    figure = Figure(figsize=(13, 6.2), dpi=130, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.55, 1))
    _scale(figure.add_subplot(grid[:, 0]), found)
    _parts(figure.add_subplot(grid[0, 1]), found)
    _line(figure.add_subplot(grid[1, 1]), found)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, lw=0.5)
    write_png(figure, path)


def _scale(axes: Axes, found: Found) -> None:
    """The running estimate, with its standard error, and the batch of the run."""
    value, error = (
        np.array([getattr(step, name) for step in found.steps])
        for name in ("value", "standard_error")
    )
    steps = np.arange(1, len(value) + 1)
    shown = np.isfinite(value) & np.isfinite(error) & (value > 0)
    steps, value, error = steps[shown], value[shown], error[shown]
    low = np.maximum(value - error, value / 10)
    axes.fill_between(steps, low, value + error, color=BLUE, alpha=0.22, lw=0)
    axes.plot(steps, value, color=BLUE, lw=2)
    batch = found.settings.recipe.batch
    axes.axhline(batch, color=GREY, ls=":", lw=1.2)
    axes.text(steps[-1], batch, "batch of this run", color=GREY, ha="right", va="bottom")
    axes.set(yscale="log", xlabel="step", ylabel="noise scale, sequences", xlim=(0, steps[-1]))
    axes.set_ylim(max(value.min() / 1.6, 0.05), max(value.max(), batch) * 1.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    context = found.settings.recipe.shape.context
    axes.set_title("The batch size at which more examples stop helping", loc="left", fontsize=13)
    axes.text(
        0.02,
        0.97,
        f"band: one standard error; a sequence has {context} tokens",
        transform=axes.transAxes,
        color=GREY,
        fontsize=9,
        va="top",
    )


def _parts(axes: Axes, found: Found) -> None:
    """The running |G|^2 and tr(Sigma)."""
    steps = np.arange(1, len(found.steps) + 1)
    for name, colour, text in (
        ("noise", ORANGE, r"noise, tr $\Sigma$"),
        ("signal", GREEN, r"gradient, $|G|^2$"),
    ):
        values = np.array([getattr(step, name) for step in found.steps])
        positive = np.where(values > 0, values, np.nan)
        axes.plot(steps, positive, color=colour, lw=1.6, label=text)
    axes.set(yscale="log", xlabel="step", xlim=(0, steps[-1]))
    axes.set_title("What it is the ratio of", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _line(axes: Axes, found: Found) -> None:
    """The mean square of the norm against 1 / B: a straight line."""
    sizes = np.array(found.settings.sizes)
    for steps, colour, name in zip(found.ends, (GREEN, BLUE), ("first", "last"), strict=True):
        squares = np.square([step.norms for step in steps])
        mean, error = squares.mean(0), squares.std(0, ddof=1) / np.sqrt(len(squares))
        scale = found.scale(steps)
        ends = np.array([0, 1 / sizes[0]])
        axes.plot(ends, scale.signal + scale.noise * ends, color=colour, lw=1.2, alpha=0.7)
        axes.errorbar(
            1 / sizes, mean, 2 * error, fmt="o", ms=5, color=colour,
            label=f"{name} {len(steps)} steps: {scale.value:.0f} ± {scale.standard_error:.0f}",
        )  # fmt: skip
    axes.set(xlabel="1 / batch size", ylabel=r"mean $|G_B|^2$", xlim=(0, 1.05 / sizes[0]))
    axes.set_ylim(bottom=0)
    axes.set_title(r"The line $|G|^2 + $ tr$\,\Sigma\,/\,B$", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
