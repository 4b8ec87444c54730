"""The figures, a question each: which rule, which rate, which preconditioner, which schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Line, curve, label
from bench.record import write_png
from bench.studies.nqm.sweep import POWERS, Found

COLOURS = {"SGD": BLUE, "momentum": ORANGE, "EMA of the weights": GREEN, "Adam": RED}
SHADES = (BLUE, "#17869e", GREEN, "#8aa51e")


def draw(found: Found, folder: Path) -> list[Path]:
    """All figures as PNG files."""
    pages = {"rules": rules, "rates": rates, "powers": powers, "schedules": schedules}
    paths = []
    for name, page in pages.items():
        paths.append(folder / f"{name}.png")
        write_png(page(found), paths[-1])
    return paths


def rules(found: Found) -> Figure:
    """Steps against batch size: which rule profits from a larger batch, and how far?"""
    figure, axes = _single("Steps to the target loss, each at its best rate")
    lines = []
    for name, colour in COLOURS.items():
        lines.append(_steps(axes, found, name, colour))
        _mark_critical(axes, found, name, colour)
    _bound(axes, found)
    axes.set_ylabel("steps")
    _caption(axes, "Diamonds: the critical batch size, where the two asymptotes cross")
    label(axes, lines)
    return figure


def rates(found: Found) -> Figure:
    """The best rate against batch size: by what factor does it grow with B?"""
    figure, axes = _single("The best learning rate")
    lines = []
    for name, colour, power in (
        ("SGD", BLUE, 1.0),
        ("SGD, p = 1/2", GREEN, 1.0),
        ("Adam", RED, 0.5),
    ):
        results = found.lines[name]
        sizes = sorted(results)
        values = [results[size].lr for size in sizes]
        lines.append(curve(axes, name, colour, sizes, values, marker="o", markersize=4))
        guide = np.array([sizes[0], min(found.critical(name), sizes[-1])])
        middle = np.exp(np.mean(np.log(values[:3]))) / np.exp(np.mean(np.log(sizes[:3]))) ** power
        axes.plot(guide, middle * guide**power, color=colour, lw=5, alpha=0.2)
    axes.set_ylabel("learning rate")
    _caption(
        axes, "Bands: proportional to B, for Adam to its square root, up to the critical batch size"
    )
    label(axes, lines)
    return figure


def powers(found: Found) -> Figure:
    """Steps against batch size for several preconditioners: what is a better one worth?"""
    figure, axes = _single("Steps of SGD with the preconditioner $H^p$")
    lines = []
    for name, colour in zip(POWERS, SHADES, strict=True):
        line = _steps(axes, found, name, colour)
        text = "p = 0" if name == "SGD" else name.removeprefix("SGD, ")
        lines.append(Line(text, colour, line.x, line.y))
        _mark_critical(axes, found, name, colour)
    axes.set_ylabel("steps")
    _caption(axes, "Diamonds: the critical batch size")
    label(axes, lines)
    return figure


def schedules(found: Found) -> Figure:
    """What a schedule saves, and what it looks like."""
    figure = Figure(figsize=(15, 5.5), dpi=130, layout="constrained")
    steps, shapes = figure.subplots(1, 2)
    _style(steps, "Steps of SGD to the target loss")
    steps.set_ylabel("steps")
    sizes = sorted(found.schedules)
    values = [found.schedules[size].steps for size in sizes]
    constant = [found.lines["SGD"][size].steps for size in sizes]
    bound = [found.bound(size) for size in sizes]
    dots = {"marker": "o", "markersize": 4}
    ends = [
        curve(steps, "optimal schedule", PURPLE, sizes, values, **dots),
        curve(steps, "best constant rate", BLUE, sizes, constant, **dots),
        curve(steps, "d / (2 target B)", GREY, sizes, bound, ls=":"),
    ]
    label(steps, ends)

    _style(shapes, "The optimal schedules")
    shapes.set(xscale="linear", xlabel="share of the run", ylabel="learning rate")
    shapes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    shown = sizes[:: max(1, len(sizes) // 6)]
    lines = []
    for place, size in enumerate(shown):
        schedule = found.schedules[size]
        colour = to_hex(colormaps["viridis"](0.9 * place / max(1, len(shown) - 1)))
        edges = np.array([0, *schedule.boundaries, schedule.steps]) / schedule.steps
        shapes.stairs(schedule.lrs, edges, baseline=None, color=colour, lw=1.8)
        lines.append(Line(f"B = {size:,}", colour, 1.0, schedule.lrs[-1]))
    label(shapes, lines)
    return figure


# --- what the figures share ---


def _single(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.5, 5.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    _style(axes, title)
    return figure, axes


def _style(axes: Axes, title: str) -> None:
    """Logarithmic axes, batch sizes as numbers."""
    axes.set(xscale="log", yscale="log", xlabel="batch size")
    axes.set_title(title, loc="left", fontsize=13)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_locator(NullLocator())


def _plain(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _steps(axes: Axes, found: Found, name: str, colour: str) -> Line:
    """A line of steps against batch size, and its name at the end."""
    results = found.lines[name]
    sizes = sorted(results)
    steps = [results[size].steps for size in sizes]
    return curve(axes, name, colour, sizes, steps, marker="o", markersize=3.5)


def _mark_critical(axes: Axes, found: Found, name: str, colour: str) -> None:
    """A diamond on the line at its critical batch size."""
    results = found.lines[name]
    sizes, at = sorted(results), found.critical(name)
    logs = np.log([results[size].steps for size in sizes])
    steps = np.exp(np.interp(np.log(at), np.log(sizes), logs))
    axes.plot(at, steps, "D", markersize=9, color=colour, markeredgecolor="white", zorder=3)


def _bound(axes: Axes, found: Found) -> None:
    """The bound for all schedules of SGD, down to the figure's lower edge."""
    low = axes.get_ylim()[0]
    sizes = np.geomspace(min(found.settings.batch_sizes), found.bound(1) / low, 3)
    axes.plot(sizes, [found.bound(size) for size in sizes], color=GREY, ls=":")
    axes.set_ylim(bottom=low)
    at = sizes[0] * (sizes[1] / sizes[0]) ** 0.8
    axes.text(at, 0.8 * found.bound(at), "d / (2 target B)", color=GREY, ha="right", va="top")


def _caption(axes: Axes, text: str) -> None:
    axes.text(0, 1.01, text, transform=axes.transAxes, fontsize=9, color=GREY, va="bottom")
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=13, pad=20)
