"""The figure of the group "map": how many times as long torch takes, in every cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure

from bench.places import OURS, Place
from bench.themes import Theme, framed

MAP = r"map/[^/]+/[^/]+/[^/]+"
MATRICES = ("pinv", "lstsq")
FEWEST, MOST = 0.5, 16.0  # ratios from which colours do not change
Cell = tuple[str, tuple[str, str]]  # its row and its column


@dataclass(frozen=True)
class Panel:
    """A part of the map: ratios by row and by column, which is named in two lines."""

    rows: Sequence[str]
    columns: Sequence[tuple[str, str]]
    ratios: dict[Cell, float]


def panel(ratios: dict[Cell, float]) -> Panel:
    """Rows and columns in the order in which they are met, but groups of columns together."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*ratios, strict=True))
    groups = [group for group, _ in columns]
    return Panel(rows, sorted(columns, key=lambda column: groups.index(column[0])), ratios)


def panels(place: Place) -> list[Panel]:
    """Functions of tensors by set and dtype; Muon; matrices by shape, and by function and form."""
    found: dict[str, dict[Cell, float]] = {}
    for case, rows in place.cases(MAP).items():
        others = [row.ratio for row in rows if row.provider != OURS]
        if not others:
            continue
        _, function, work, form = case.split("/")
        if function in MATRICES:
            dtype, rank = form.split("-")
            kind, cell = "matrices", (work, (f"{function}, {dtype}", rank))
        else:
            kind, cell = "Muon" if function == "Muon" else "tensors", (function, (form, work))
        found.setdefault(kind, {})[cell] = min(others)
    return [panel(ratios) for ratios in found.values()]


def map(place: Place, theme: Theme) -> Figure | None:  # the figure's name in files
    """Blue where fusedstep is faster than every form of torch's, red where it is slower."""
    shown = panels(place)
    if not shown:
        return None
    heights = [len(one.rows) for one in shown]
    figure = framed(
        1 + 0.2 * sum(heights) + 0.5 * len(shown), "The map: torch's time over fusedstep's",
        (f"Medians. {place.note}",), theme,
    )  # fmt: skip
    grid = figure.add_gridspec(len(shown), 1, height_ratios=heights)
    for at, one in enumerate(shown):
        draw(figure.add_subplot(grid[at, 0]), one, theme)
    return figure


def draw(axes: Axes, shown: Panel, theme: Theme) -> None:
    """A cell for each ratio, columns in groups by the first line of their names."""
    colours = LinearSegmentedColormap.from_list("map", (theme.slower, theme.grid, theme.ours))
    scale = TwoSlopeNorm(0, math.log2(FEWEST), math.log2(MOST))
    ratios = np.array(
        [[shown.ratios.get((row, column), math.nan) for column in shown.columns]
         for row in shown.rows]
    )  # fmt: skip
    axes.imshow(np.log2(ratios), cmap=colours, norm=scale, aspect="auto")
    for (y, x), ratio in np.ndenumerate(ratios):
        if ratio == ratio:
            strong = not 0.75 < ratio < 3
            axes.text(
                x, y, f"{ratio:.3g}" if ratio < 100 else f"{ratio:.0f}", ha="center", va="center",
                fontsize=8, color=theme.on_ours if strong else theme.text,
            )  # fmt: skip
    groups = [group for group, _ in shown.columns]
    for at in range(1, len(groups)):
        if groups[at] != groups[at - 1]:
            axes.axvline(at - 0.5, color=theme.text, lw=1)
    names = [name for _, name in shown.columns]
    wide = max(len(name) for name in names) > 9
    axes.set_xticks(range(len(names)), names, fontsize=6.5 if wide else 7.5)
    axes.set_yticks(range(len(shown.rows)), shown.rows, fontsize=8.5)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    above = axes.secondary_xaxis(1.0)
    starts = [at for at, group in enumerate(groups) if at == 0 or group != groups[at - 1]]
    ends = [*starts[1:], len(groups)]
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    above.set_xticks(middles, [f"{groups[start]}\n" for start in starts], fontsize=9)
    above.tick_params(length=0)
    for one in (axes, above):
        one.spines[:].set_visible(False)
