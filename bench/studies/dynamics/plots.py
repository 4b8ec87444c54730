"""What the figures share: panels without clutter, and names next to their lines."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.studies.last_layer.report import Line, spread

BLUE, ORANGE, GREEN, RED, GREY = "#1b5e9e", "#e8743b", "#2a8a4a", "#c1272d", "0.45"
PURPLE = "#7b52ab"

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "RED", "Line", "label", "page", "panel",
           "plain", "shades"]  # fmt: skip


def page(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(1 + 7 * panels, 5.5), dpi=130, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def panel(axes: Axes, title: str, caption: str, **settings: object) -> None:
    """Title, a line below it, and the settings of the axes: labels, scales, limits."""
    axes.set(**settings)
    axes.set_title(title, loc="left", fontsize=13, pad=20)
    axes.text(0, 1.01, caption, transform=axes.transAxes, fontsize=9, color=GREY, va="bottom")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.5)


def plain(axis: Axis) -> None:
    """Numbers 1, 2, 5, 10, ... on a logarithmic axis of a few decades."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def label(axes: Axes, lines: Sequence[Line]) -> None:
    """Writes names to the right of the axes, as high as the lines' ends; call it last."""
    low, high = axes.get_ylim()
    heights = axes.transData + axes.transAxes.inverted()
    wanted = [float(heights.transform((line.x, line.y))[1]) for line in lines]
    order = sorted(range(len(lines)), key=wanted.__getitem__)
    places = spread([min(max(wanted[at], 0.0), 1.0) for at in order])
    for at, place in zip(order, places, strict=True):
        line = lines[at]
        tie = {"arrowstyle": "-", "color": line.colour, "lw": 0.6, "alpha": 0.5}
        axes.annotate(
            line.name,
            (line.x, min(max(line.y, low), high)),  # a tie from outside would not be drawn
            (1.03, place),
            textcoords="axes fraction",
            color=line.colour,
            fontsize=9,
            va="center",
            arrowprops=tie | {"shrinkA": 1, "shrinkB": 0} if line.tied else None,
        )


def shades(count: int) -> list[str]:
    """Colours from dark to light, for an ordered family of lines."""
    return [to_hex(colormaps["viridis"](0.85 * k / max(1, count - 1))) for k in range(count)]
