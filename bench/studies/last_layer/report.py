"""What the study shows: three tables with the reasons, and a figure with labelled lines."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rich.console import Console
from rich.table import Table

from bench.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Line, curve, label
from bench.record import write_png
from bench.studies.last_layer.adamw import Point
from bench.studies.last_layer.newton import Newton
from bench.studies.last_layer.problem import HORIZONS
from bench.studies.last_layer.study import Found

ROOF = 1000.0  # nats: the upper limit of the loss axis
ROOT_COLOURS = (RED, ORANGE, "#8c564b", "#d62780", "#6a8e22", "#17869e", PURPLE, BLUE, GREEN)

# --- tables ---


def show(found: Found, console: Console) -> None:
    """Prints all three."""
    for table in (formulas(found), losses(found), variants(found)):
        console.print(table)


def _table(title: str, first: str, *headings: str) -> Table:
    view = Table(first, title=title, title_style="bold", caption_justify="left", caption_style="")
    for heading in headings:
        view.add_column(heading, justify="right")
    return view


def formulas(found: Found) -> Table:
    """Mean squared errors: of each formula on a few sequences, of the streaming solve on all."""
    view = _table(
        "Mean squared error on one-hot targets times 1000", "", "tokens", "fitted", "held out", "s"
    )
    trivial = found.trivial_mse
    view.add_row("all weights 0: 1000^2 / vocabulary", "", f"{trivial:.2f}", f"{trivial:.2f}", "")
    for of_some in found.formulas:
        view.add_section()
        view.add_row("a fresh last layer", f"{of_some.tokens}", f"{of_some.before:.2f}")
        for name, of_one in of_some.losses.items():
            loss = of_one.error or ("not finite" if of_one.mse is None else f"{of_one.mse:.5g}")
            view.add_row(name, f"{of_some.tokens}", loss, "", f"{of_one.seconds:.3f}")
    for name, of_all in (
        ("as initialised", found.least_squares_untrained),
        ("trained", found.least_squares),
    ):
        view.add_section()
        for row, fitted, held_out, seconds in (
            ("a fresh last layer", of_all.mse_before, of_all.held_out_mse_before, ""),
            (
                "fusedstep LeastSquares",
                of_all.mse,
                of_all.held_out_mse,
                f"{of_all.solve_seconds:.2f}",
            ),
        ):
            view.add_row(
                f"{row}, mixer {name}",
                f"{of_all.tokens:,}",
                f"{fitted:.2f}",
                f"{held_out:.2f}",
                seconds,
            )
    one = found.formulas[0]
    if one.rank < one.width:
        view.caption = (
            f"A sequence of {one.tokens} tokens has {one.distinct} distinct ones, so its "
            f"hidden states have rank {one.rank} of {one.width}:\nX.T @ X has no inverse. "
            "torch.pinverse takes float32's rounding errors for singular values.\n"
            "The article, whose vocabulary has 4096 tokens, reports 244.52 before fitting."
        )
    return view


def losses(found: Found) -> Table:
    """Held-out cross-entropy of the closed form and of AdamW."""
    view = _table("Held-out cross-entropy, nats", "", "steps", "loss", "s")
    view.add_row("uniform guess", "", f"{found.uniform_loss:.3f}", "")
    view.add_row("guess by frequency", "", f"{found.unigram_loss:.3f}", "")
    solved = found.least_squares
    view.add_row(
        f"least squares, logits times {solved.temperature_factor:.3g}",
        "",
        f"{solved.held_out_loss:.3f}",
        f"{solved.seconds:.2f}",
    )
    for name, points in (
        ("last layer alone, frozen mixer", found.adamw_head),
        ("all", found.adamw_whole),
    ):
        view.add_section()
        for point in shown(points):
            view.add_row(
                f"AdamW, {name}",
                f"{point.step}",
                f"{point.held_out_loss:.3f}",
                f"{point.seconds:.2f}",
            )
    view.caption = (
        "The fair comparison is with the last layer alone: the same frozen hidden states.\n"
        "Least squares fits the probabilities themselves, but a softmax needs their logarithms:\n"
        "no temperature compensates for that."
    )
    return view


def shown(points: list[Point]) -> list[Point]:
    """Those after 1, 10, 100, 1000 steps and the last."""
    return [p for p in points if p.step in HORIZONS or p is points[-1]]


def variants(found: Found) -> Table:
    """Loss of each Newton variant on its batch, and the reason."""
    study = found.newton
    facts = study.facts
    view = _table(
        f"Newton from the same start on the same {facts.tokens} tokens: "
        f"cross-entropy, {study.before:.3f} before",
        "",
        "after 1",
        "after 5",
        "last",
        "steps",
        "s",
    )
    view.add_column("why", ratio=1)
    for name, outcome in study.variants.items():
        path = outcome.losses
        end = "diverged" if outcome.exploded else ""
        view.add_row(
            name,
            _loss(path[0]),
            _loss(path[4]) if len(path) > 4 else "",
            _loss(path[-1]),
            f"{len(path)}",
            f"{outcome.seconds[-1]:.1f}",
            outcome.reason,
            style="red" if end else "",
        )
    view.caption = (
        f"{facts.classes} classes occur; root-finders as published use the article's loss "
        "constants. In red: diverged."
    )
    return view


def _loss(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.3f}" if 1e-2 < value < 1e4 else f"{value:.1e}"


# --- the figure ---


def draw(found: Found, path: Path) -> None:
    """Held-out loss against time, then every Newton variant, all axes logarithmic, as a PNG."""
    figure = Figure(figsize=(17, 6), dpi=130, layout="constrained")
    trained, roots, minima = figure.subplots(1, 3)
    for axes in (trained, roots, minima):
        axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="cross-entropy, nats")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, which="both", lw=0.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _trained(trained, found)
    study = found.newton
    _newton(roots, study, True, ROOF, "Newton for a root, on one batch")
    _newton(minima, study, False, 1.3 * study.before, "Newton for a minimum, on that batch")
    write_png(figure, path)


def _trained(axes: Axes, found: Found) -> None:
    """Closed form and AdamW, on held-out text."""
    lines = []
    for what, path, colour in (
        ("AdamW, last layer alone", found.adamw_head, ORANGE),
        ("AdamW, all", found.adamw_whole, BLUE),
    ):
        points = path[1:]
        seconds = [point.seconds for point in points]
        losses = [point.held_out_loss for point in points]
        name = f"{what}, {points[-1].step} steps"
        lines.append(curve(axes, name, colour, seconds, losses, marker="o", markersize=4))
    solved = found.least_squares
    x, y = solved.seconds, solved.held_out_loss
    axes.plot(x, y, "*", markersize=15, color=GREEN)
    lines.append(Line("least squares, a temperature", GREEN, x, y))
    right = axes.get_xlim()[1]
    for name, loss in (
        ("uniform guess", found.uniform_loss),
        ("by frequency", found.unigram_loss),
    ):
        axes.axhline(loss, color=GREY, lw=1, ls=":")
        lines.append(Line(name, GREY, right, loss))
    axes.yaxis.set_minor_formatter(NullFormatter())
    curves = found.adamw_head + found.adamw_whole
    lowest = min(point.held_out_loss for point in curves)
    axes.set_yticks(range(1, 12))
    axes.set_ylim(0.95 * lowest, 1.05 * found.uniform_loss)
    axes.set_title("Held-out loss of the last layer", loc="left")
    label(axes, lines)


def _newton(axes: Axes, study: Newton, root: bool, roof: float, title: str) -> None:
    """The variants of one kind, up to the limit `roof` of the loss."""
    chosen = {name: v for name, v in study.variants.items() if v.root == root}
    every = [loss for v in chosen.values() for loss in v.losses if loss is not None]
    axes.set_ylim(0.8 * max(1e-3, min(every)), roof)
    axes.axhline(study.before, color=GREY, lw=1, ls=":")
    lines = []
    for (name, outcome), colour in zip(chosen.items(), ROOT_COLOURS, strict=False):
        pairs = [
            (second, 1e30 if loss is None else loss)
            for second, loss in zip(outcome.seconds, outcome.losses, strict=True)
        ]
        style = "--" if outcome.published else "-"
        axes.plot(*zip(*pairs, strict=True), style, marker="o", markersize=3, color=colour)
        inside = next((pair for pair in pairs if pair[1] > roof), pairs[-1])
        exploded = outcome.exploded
        note = ": diverges" if exploded else ""
        lines.append(Line(name + note, colour, *inside, tied=not exploded))
    lines.append(Line("start", GREY, axes.get_xlim()[1], study.before))
    axes.set_title(title, loc="left")
    label(axes, lines)
