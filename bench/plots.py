"""Draws what `python -m bench` measured: every provider beside the limit of the hardware.

    python -m bench.plots                       from bench/results/bench.csv
    python -m bench.plots --csv my.csv --out figures

Of each machine, device and number of threads, four figures of clip + AdamW, one of whole training
steps and the map, from the latest row of each case and provider. Each is drawn for light and for
dark pages: bench/results/<machine>-<figure>-light.svg and -dark.svg.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bench import map_figure
from bench.command import InputError, Parser, exit_status, make_folder
from bench.drawing import Line, curve, label, plain
from bench.places import OURS, PARTS, Place, Timed, places
from bench.record import RESULTS, read_csv, write_whole
from bench.themes import ADAMW, THEMES, Theme, amount, bars, duration, framed, in_time, opened

CSV = RESULTS / "bench.csv"
LONGEST = 5.0  # a bar ends at this multiple of our time
# Names of cases: of one tensor, of many small ones, of models, of forms of state.
SIZES = rf"{ADAMW}1e\d+/float32"
COUNTS = rf"{ADAMW}\d+x\d+/float32"
MODELS = rf"(?!{SIZES}|{COUNTS}){ADAMW}(?P<of>[^/]+)/float32"
STATES = rf"{ADAMW}gpt2/[^/]+"

# --- the figures; each is None where nothing of its kind was measured ---


def models(place: Place, theme: Theme) -> Figure | None:
    """Clip + step of real models: a bar for each provider, and the roof as a line."""
    cases = {of: rows for of, rows in place.cases(MODELS).items() if rows[0].provider == OURS}
    if not cases:
        return None
    columns = 2 if len(cases) > 1 else 1
    chunks = [list(cases)[at : at + columns] for at in range(0, len(cases), columns)]
    heights = [1.2 + max(len(cases[name]) for name in chunk) for chunk in chunks]
    figure = framed(
        1 + 0.24 * sum(heights), "Clip + AdamW: time of a step",
        ("Medians, with p10 to p90. Dashed, the roof: torch's time to stream the least bytes of a "
         "step. Caches can beat it, and prefetching", place.note), theme,
    )  # fmt: skip
    grid = figure.add_gridspec(len(chunks), columns, height_ratios=heights)
    for row, chunk in enumerate(chunks):
        for column, name in enumerate(chunk):
            rows = sorted(cases[name], key=lambda one: one.middle)
            axes = figure.add_subplot(grid[row, column])
            _model(axes, name, rows, max(heights[row] - 1.2, 1), theme)
    return figure


def _model(axes: Axes, name: str, rows: list[Timed], room: float, theme: Theme) -> None:
    """A bar for each row, from fast to slow; `room`: for how many."""
    ours = next(row for row in rows if row.provider == OURS)
    longest = min(LONGEST * ours.middle, max(row.high for row in rows))
    right = 1.6 * longest  # with room for the times beside the bars
    share = ours.roof / ours.middle
    for at, row in enumerate(rows):
        mine, cut, high = row is ours, row.middle > longest, min(row.high, longest)
        colour = theme.ours if mine else theme.peers[0]
        axes.barh(at, min(row.middle, longest), 0.72, color=colour, alpha=1 if mine else 0.55)
        if not cut:
            error = ((row.middle - row.low,), (high - row.middle,))
            axes.errorbar(row.middle, at, xerr=error, color=theme.text, lw=0.8, capsize=2)
        text = duration(row.middle)
        if mine and share <= 1:
            text += f", {share:.0%} of roof"
        inside = mine and row.middle > longest / 2
        axes.text(
            0.03 * longest + (0 if inside else high), at, "» " * cut + text,
            va="center", fontsize=9, fontweight="bold" if mine else "normal",
            color=theme.on_ours if inside else colour if mine else theme.text,
        )  # fmt: skip
    if ours.roof < right:
        axes.axvline(ours.roof, color=theme.text, lw=1, ls=(0, (4, 3)))
    bars(
        axes,
        [row.provider for row in rows],
        [theme.ours if row is ours else theme.text for row in rows],
    )
    axes.set(xlim=(0, right), ylim=(room - 0.5, -0.5))
    tensors = "1 tensor" if ours.tensors == 1 else f"{ours.tensors:,} tensors"
    title = f"{name}: {amount(ours.elements)}, {tensors}"
    axes.set_title(title, loc="left", fontsize=9)


def tensors(place: Place, theme: Theme) -> Figure | None:
    """Time against the number of small tensors."""

    def time(row: Timed) -> tuple[float, float, float, float]:
        return row.tensors, row.low, row.middle, row.high

    lines = _lines(place, theme, COUNTS, time, "Clip + AdamW of many small tensors")
    if lines is None:
        return None
    figure, axes, names = lines
    opened(axes, theme, xlabel="tensors of 64 elements", ylabel="time of a step")
    in_time(axes.yaxis, subs=(1,))
    label(axes, names, relpos=(0, 0.5))
    return figure


def sizes(place: Place, theme: Theme) -> Figure | None:
    """GB/s against the size of one tensor, and the rate at which torch streams."""

    def rate(row: Timed) -> tuple[float, float, float, float]:
        gigabytes = row.least_bytes / 1e6
        return row.elements, gigabytes / row.high, gigabytes / row.middle, gigabytes / row.low

    lines = _lines(place, theme, SIZES, rate, "Clip + AdamW of one tensor")
    if lines is None:
        return None
    figure, axes, names = lines
    opened(axes, theme, xlabel="elements of the tensor",
           ylabel="GB/s of the bytes that no step can avoid")  # fmt: skip
    ours = place.series(SIZES)[OURS][-1]
    roof, left = ours.least_bytes / 1e6 / ours.roof, axes.get_xlim()[0]
    axes.axhline(roof, color=theme.text, lw=1, ls=(0, (4, 3)))
    note = f"torch's passes, {roof:.3g} GB/s"
    axes.text(1.1 * left, 1.04 * roof, note, fontsize=9, va="bottom")
    plain(axes.yaxis)
    label(axes, names, relpos=(0, 0.5))
    return figure


def _lines(
    place: Place,
    theme: Theme,
    pattern: str,
    point: Callable[[Timed], tuple[float, float, float, float]],
    title: str,
) -> tuple[Figure, Axes, list[Line]] | None:
    """A line for each provider with p10 to p90, ours on top, and their names for `label`."""
    series = place.series(pattern)
    if len(series.get(OURS, [])) < 2:
        return None
    figure = framed(4.9, title, (f"Medians, with p10 to p90. {place.note}",), theme)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_formatter(lambda value, _: amount(value))
    colours, names = theme.colours(place), []
    for provider in sorted(series, key=lambda name: name == OURS):
        mine, colour = provider == OURS, colours[provider]
        x, low, middle, high = map(np.array, zip(*map(point, series[provider]), strict=True))
        axes.errorbar(x, middle, (middle - low, high - middle), fmt="none", ecolor=colour, lw=1)
        size, width = (4.5, 2.4) if mine else (3, 1.2)
        line = curve(axes, provider, colour, x, middle, marker="o", markersize=size, lw=width)
        names.append(line)
    return figure, axes, names


def state(place: Place, theme: Theme) -> Figure | None:
    """Bytes of state against time: a point for each provider and form of state."""
    rows = [row for case in place.cases(STATES).values() for row in case if row.state_bytes]
    if len({row.case for row in rows}) < 2:
        return None
    figure = framed(
        5.2, "Clip + AdamW of GPT-2: state against time",
        (f"Medians, with p10 to p90. {place.note}",), theme,
    )  # fmt: skip
    axes = figure.subplots()
    colours = theme.colours(place)
    for row in rows:
        axes.errorbar(
            row.state_bytes / row.elements, row.middle, fmt="o",
            yerr=((row.middle - row.low,), (row.high - row.middle,)),
            color=colours[row.provider], markersize=8 if row.provider == OURS else 5.5, lw=1,
        )  # fmt: skip
    opened(axes, theme, xlabel="bytes of state for each parameter", ylabel="time of a step")
    axes.set(yscale="log", xlim=(0, 1.25 * axes.get_xlim()[1]))
    in_time(axes.yaxis)
    figure.draw_without_rendering()  # lays it out: from here on pixels are known
    _name_points(axes, rows, colours)
    return figure


def _name_points(axes: Axes, rows: Sequence[Timed], colours: Mapping[str, str]) -> None:
    """A name beside each point, where it covers neither another name nor a point."""
    in_pixels, in_axes = axes.transData.transform, axes.transAxes.inverted().transform
    points = in_pixels([(row.state_bytes / row.elements, row.middle) for row in rows])
    taken = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    modes = {name: {row.mode for row in rows if row.provider == name} for name in colours}
    for row, (x, y) in sorted(zip(rows, points, strict=True), key=lambda pair: -pair[1][1]):
        colour = colours[row.provider]
        name = axes.text(
            0, 0, row.provider + f", {row.mode}" * (len(modes[row.provider]) > 1), color=colour,
            transform=axes.transAxes, fontsize=9, va="center", in_layout=False,
            fontweight="bold" if row.provider == OURS else "normal",
        )  # fmt: skip
        size = name.get_window_extent()
        for up, right in product(sorted(range(-64, 65, 8), key=abs), (True, False)):
            left = x + 11 if right else x - 11 - size.width
            box = Bbox.from_bounds(left, y + up - size.height / 2, size.width, size.height)
            inside = box.x0 > axes.bbox.x0 and box.x1 < axes.bbox.x1 and box.y1 < axes.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        name.set(position=in_axes((box.x0, y + up)))
        if up:
            tie = in_axes([(x, y), (box.x0 if right else box.x1, y + up)])
            axes.plot(*tie.T, color=colour, lw=0.6, transform=axes.transAxes)


def share(place: Place, theme: Theme) -> Figure | None:
    """The parts of a training step, with torch's optimizer and with ours."""
    trainings = list(place.trainings())
    if not trainings:
        return None
    figure = framed(
        1.1 + 0.85 * len(trainings), "A training step, with torch's optimizer and with ours",
        (f"Medians. {place.note}",), theme,
    )  # fmt: skip
    for axes, found in zip(
        figure.subplots(len(trainings), squeeze=False)[:, 0], trainings, strict=True
    ):
        names = list(found.parts)
        for at, (provider, parts) in enumerate(found.parts.items()):
            left = 0.0
            for part, alpha in zip(PARTS, (0.2, 0.35, 1.0), strict=True):
                colour = theme.ours if provider == OURS else theme.faint
                axes.barh(at, parts[part], 0.72, left=left, color=colour, alpha=alpha)
                if at == 0 and parts[part] > 0.12 * found.whole(provider):
                    axes.text(left, -0.45, part, fontsize=8.5, color=theme.faint, va="bottom")
                left += parts[part]
            gain = f" ({found.gain:.2f}x)" if provider == OURS else ""
            text = f"{duration(left)}{gain}, {found.share(provider):.0%} optimizer"
            axes.text(left * 1.01, at, text, va="center", fontsize=9)
        bars(axes, names, [theme.ours if name == OURS else theme.text for name in names])
        axes.set_xlim(0, 1.45 * max(map(found.whole, names)))
        axes.set_title(found.model, loc="left", fontsize=9, pad=14)
    return figure


FIGURES = (models, tensors, sizes, state, share, map_figure.map)


def drawn(place: Place, theme: Theme) -> dict[str, Figure]:
    """The figures that can be drawn of a place, by name."""
    with matplotlib.rc_context(theme.settings):
        figures = {make.__name__: make(place, theme) for make in FIGURES}
    return {name: figure for name, figure in figures.items() if figure is not None}


def write_svg(figure: Figure, path: Path) -> None:
    """The same file from the same rows, without a date or random names; text stays text."""
    svg = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    write_whole(path, lambda file: file.write(svg.getvalue()))


def run(arguments: list[str]) -> int:
    """Exit status: 0, or 2 where nothing was measured."""
    parser = Parser(__doc__)
    parser.add_argument("--csv", type=Path, default=CSV, help="results of `python -m bench`")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the figures")
    given = parser.parse_args(arguments)
    if not given.csv.exists():
        raise InputError(f"--csv: no {given.csv}: run `python -m bench` first")
    make_folder(given.out)
    for place, theme in product(places(read_csv(given.csv)), THEMES):
        for name, figure in drawn(place, theme).items():
            path = given.out / f"{place.slug}-{name}-{theme.name}.svg"
            write_svg(figure, path)
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("plots", lambda: run(sys.argv[1:])))
