"""The figure: held-out loss against time, then every Newton variant's, all axes logarithmic."""

import io
from pathlib import Path

from lm.files import write_whole
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .labels import Line, label

ROOF = 1000.0  # nats: what goes above explodes
BLUE, ORANGE, GREEN, GREY = "#1b5e9e", "#e8743b", "#2a8a4a", "0.45"
ROOT_COLOURS = ("#c1272d", "#e8743b", "#8c564b", "#d62780", "#6a8e22", "#17869e", "#7b52ab",
                "#1b5e9e", "#2a8a4a")  # fmt: skip


def draw(found: dict, path: Path) -> None:
    """Writes the PNG; `found` is what `study` gave."""
    figure = Figure(figsize=(17, 6), dpi=130, layout="constrained")
    trained, roots, minima = figure.subplots(1, 3)
    for axes in (trained, roots, minima):
        axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="cross-entropy, nats")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, which="both", lw=0.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _trained(trained, found)
    study = found["newton"]
    _newton(roots, study, True, ROOF, "Newton for a root, on one batch")
    _newton(minima, study, False, 1.3 * study["before"], "Newton for a minimum, on that batch")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(png.getvalue()))


def _trained(axes: Axes, found: dict) -> None:
    """Closed form and AdamW, on held-out text."""
    lines = []
    for name, key, colour in (
        ("AdamW, last layer alone", "adamw_head", ORANGE),
        ("AdamW, all", "adamw_whole", BLUE),
    ):
        points = found[key][1:]
        seconds = [point["seconds"] for point in points]
        losses = [point["held_out_loss"] for point in points]
        axes.plot(seconds, losses, marker="o", markersize=4, color=colour)
        lines.append(Line(f"{name}, {points[-1]['step']} steps", colour, seconds[-1], losses[-1]))
    solved = found["least_squares"]
    axes.plot(solved["seconds"], solved["held_out_loss"], "*", markersize=15, color=GREEN)
    lines.append(
        Line(
            "least squares, a temperature",
            GREEN,
            solved["seconds"],
            solved["held_out_loss"],
        )
    )
    right = axes.get_xlim()[1]
    for name, loss in (
        ("uniform guess", found["uniform_loss"]),
        ("by frequency", found["unigram_loss"]),
    ):
        axes.axhline(loss, color=GREY, lw=1, ls=":")
        lines.append(Line(name, GREY, right, loss))
    axes.yaxis.set_minor_formatter(NullFormatter())
    curves = found["adamw_head"] + found["adamw_whole"]
    lowest = min(point["held_out_loss"] for point in curves)
    axes.set_yticks(range(1, 12))
    axes.set_ylim(0.95 * lowest, 1.05 * found["uniform_loss"])
    axes.set_title("Held-out loss of the last layer", loc="left")
    label(axes, lines)


def _newton(axes: Axes, study: dict, root: bool, roof: float, title: str) -> None:
    """The variants of one kind; those that explode leave through the roof."""
    chosen = {name: v for name, v in study["variants"].items() if v["root"] == root}
    every = [loss for v in chosen.values() for loss in v["losses"] if loss is not None]
    axes.set_ylim(0.8 * max(1e-3, min(every)), roof)
    axes.axhline(study["before"], color=GREY, lw=1, ls=":")
    lines = []
    for (name, outcome), colour in zip(chosen.items(), ROOT_COLOURS, strict=False):
        pairs = [
            (second, 1e30 if loss is None else loss)
            for second, loss in zip(outcome["seconds"], outcome["losses"], strict=True)
        ]
        style = "--" if outcome["published"] else "-"
        axes.plot(*zip(*pairs, strict=True), style, marker="o", markersize=3, color=colour)
        inside = next((pair for pair in pairs if pair[1] > roof), pairs[-1])
        exploded = outcome["exploded"]
        note = ": explodes" if exploded else ""
        lines.append(Line(name + note, colour, *inside, tied=not exploded))
    lines.append(Line("start", GREY, axes.get_xlim()[1], study["before"]))
    axes.set_title(title, loc="left")
    label(axes, lines)
