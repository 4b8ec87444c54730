"""How the figures of the benchmark look: colours of light and dark pages, frames, axes, units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.places import OURS, Place

ADAMW = "step/adamw/clip/"  # the cases that figures show by provider
WIDTH = 8.4  # inches of 96 pixels: 806 pixels, as pages show it


@dataclass(frozen=True)
class Theme:
    """Colours for pages of one kind: on a transparent ground, which lets the page show."""

    name: str
    text: str
    faint: str  # notes, axes, roofs
    ours: str
    on_ours: str  # text
    slower: str  # than torch
    peers: tuple[str, ...]
    grid: str

    @property
    def settings(self) -> dict[Any, Any]:
        """For matplotlib, while it draws."""
        return {
            "figure.facecolor": "none", "axes.facecolor": "none", "font.size": 9.5,
            "text.color": self.text, "axes.labelcolor": self.text, "axes.edgecolor": self.faint,
            "xtick.color": self.faint, "ytick.color": self.faint,
        }  # fmt: skip

    def colours(self, place: Place) -> dict[str, str]:
        """Of each provider of clip + AdamW, the same in all figures of a place.

        Those with float32 state come first: they are in every figure.
        """
        rows = [row for row in place.rows if row.case.startswith(ADAMW) and row.provider != OURS]
        rows.sort(key=lambda row: (row.mode != "float32", row.provider))
        names = dict.fromkeys(row.provider for row in rows)
        return {OURS: self.ours, **dict(zip(names, cycle(self.peers), strict=False))}


THEMES = (
    Theme(
        "light", "#24292f", "#6e7781", "#0b5cd5", "white", "#c0392b", grid="#d8dee4",
        peers=("#8a8f98", "#b0803a", "#5c8f6a", "#8f73a8", "#b5686b", "#3f949b", "#7d7358",
               "#c2728f", "#8a9a2f", "#5f7fa3", "#a4643f", "#6b6f8f",
               "#b946b9", "#3fa650", "#1c4a42", "#593181"),
    ),
    Theme(
        "dark", "#d6dbe1", "#8d96a0", "#6cb6ff", "#10151c", "#ff8a7a", grid="#3a414b",
        peers=("#9aa1ab", "#c8a063", "#84b08f", "#b09ac6", "#cf8f91", "#7fb5ba", "#aaa084",
               "#d79ab2", "#b3c063", "#93aac6", "#c79473", "#9a9ebd",
               "#c76bc7", "#46b946", "#509550", "#7e7ece"),
    ),
)  # fmt: skip


def duration(milliseconds: float) -> str:
    """In the unit that suits it."""
    if milliseconds < 1:
        return f"{1e3 * milliseconds:.3g} µs"
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1e3:.3g} s"


def amount(number: float) -> str:
    """A count, with its thousands, millions or billions as a letter."""
    thousands = min(3, int(math.log10(max(number, 1))) // 3)
    return f"{number / 1000**thousands:.3g}{('', ' k', ' M', ' G')[thousands]}"


def framed(height: float, title: str, notes: Sequence[str], theme: Theme) -> Figure:
    """An empty figure with its title and, below, how it is read and where it was measured."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    note = "\n".join(notes)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8.5, color=theme.faint, linespacing=1.5)
    return figure


def in_time(axis: Axis, subs: Sequence[float] = (1, 2, 5)) -> None:
    """A logarithmic axis of milliseconds."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda milliseconds, _: duration(milliseconds))
    axis.set_minor_formatter(NullFormatter())


def opened(axes: Axes, theme: Theme, **settings: object) -> None:
    """Axes with a grid and no box around it."""
    axes.set(**settings)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=theme.grid, lw=0.6)


def bars(axes: Axes, names: Sequence[str], colours: Sequence[str]) -> None:
    """Axes for horizontal bars: the first on top, names in their colours, no frame."""
    axes.set_yticks(range(len(names)), names, fontsize=9)
    for text, colour in zip(axes.get_yticklabels(), colours, strict=True):
        text.set_color(colour)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
