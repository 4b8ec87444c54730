"""Names at the ends of lines instead of a legend, moved apart so that none covers another."""

import math
from dataclasses import dataclass

from matplotlib.axes import Axes

TOP = 0.97  # of the axes' height: above is the title
SPACING = 0.055  # of the axes' height, between two names


@dataclass(frozen=True)
class Line:
    """A name, the colour of its line, and where that ends in data coordinates; `tied` to it or not
    by a thin line."""

    name: str
    colour: str
    x: float
    y: float
    tied: bool = True


def label(axes: Axes, lines: list[Line]) -> None:
    """Writes the names right of logarithmic axes, whose limits are set, as high as the ends."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    ends = sorted(lines, key=lambda line: line.y)
    wanted = [(math.log(min(max(line.y, 1e-30), 1e30)) - low) / (high - low) for line in ends]
    for line, at in zip(ends, spread(wanted), strict=True):
        tie = {"arrowstyle": "-", "color": line.colour, "lw": 0.6, "alpha": 0.5}
        axes.annotate(
            line.name,
            (line.x, min(max(line.y, math.exp(low)), math.exp(high))),
            (1.03, at),
            textcoords="axes fraction",
            color=line.colour,
            fontsize=9,
            va="center",
            arrowprops=tie | {"shrinkA": 1, "shrinkB": 0} if line.tied else None,
        )


def spread(wanted: list[float]) -> list[float]:
    """Ascending heights in [0, TOP], at least SPACING apart and near to the wanted ones.

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
