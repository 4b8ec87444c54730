"""What the figures share: colours, panels without clutter, names next to their lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

BLUE, ORANGE, GREEN, RED, GREY = "#1b5e9e", "#e8743b", "#2a8a4a", "#c1272d", "0.45"
PURPLE = "#7b52ab"
Values = Sequence[Any] | np.ndarray
TOP = 0.97  # of the axes' height: above is the title
SPACING = 0.055  # of the axes' height, between two names


def shades(count: int) -> list[str]:
    """Colours from dark to light, for an ordered family of lines."""
    return [to_hex(colormaps["viridis"](0.85 * k / max(1, count - 1))) for k in range(count)]


# --- panels ---


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


# --- names at the ends of lines instead of a legend, moved apart so that none covers another ---


@dataclass(frozen=True)
class Line:
    """A name, the colour of its line, and where that ends; `tied` to it by a thin line or not."""

    name: str
    colour: str
    x: float
    y: float
    tied: bool = True


def curve(axes: Axes, name: str, colour: str, x: Values, y: Values, **style: Any) -> Line:
    """Draws y over x, and returns what `label` needs to write the name at its end."""
    axes.plot(x, y, color=colour, **style)
    return Line(name, colour, x[-1], y[-1])


def label(axes: Axes, lines: Sequence[Line], **tie: object) -> None:
    """Writes names to the right of the axes, as high as the lines' ends; call it last.

    tie: how the thin lines between are drawn, as matplotlib's `arrowprops`.
    """
    low, high = axes.get_ylim()
    heights = axes.transData + axes.transAxes.inverted()
    wanted = [float(heights.transform((line.x, line.y))[1]) for line in lines]
    order = sorted(range(len(lines)), key=wanted.__getitem__)
    for at, place in zip(order, spread([wanted[at] for at in order]), strict=True):
        line = lines[at]
        look = {"arrowstyle": "-", "color": line.colour, "lw": 0.6, "alpha": 0.5}
        look |= {"shrinkA": 1, "shrinkB": 0} | tie
        axes.annotate(
            line.name,
            (line.x, min(max(line.y, low), high)),  # a tie from outside would not be drawn
            (1.03, place),
            textcoords="axes fraction",
            color=line.colour,
            fontsize=9,
            va="center",
            arrowprops=look if line.tied else None,
        )


def spread(wanted: list[float]) -> list[float]:
    """Ascending heights in [0, TOP], at least SPACING apart and near the wanted ones.

    Groups of names that touch are moved as one, so that each group stays around its own mean.
    """
    groups: list[tuple[float, int]] = []  # of each its middle and its size
    for height in wanted:
        middle, size = min(max(height, 0.0), TOP), 1
        while groups and middle - groups[-1][0] < SPACING * (size + groups[-1][1]) / 2:
            other, count = groups.pop()
            middle = (middle * size + other * count) / (size + count)
            size += count
        groups.append((middle, size))
    heights = [
        middle + SPACING * (place - (size - 1) / 2)
        for middle, size in groups
        for place in range(size)
    ]
    return _inside(heights)


def _inside(heights: list[float]) -> list[float]:
    """Moved down where the uppermost is above TOP, then up where the lowest is below 0."""
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], TOP - SPACING * (len(heights) - 1 - place))
    for place in range(len(heights)):
        heights[place] = max(heights[place], SPACING * place)
    return heights
