"""What the study found, for people: three tables, each with its reasons."""

from rich.console import Console
from rich.table import Table

from .settings import HORIZONS


def show(found: dict, console: Console) -> None:
    """Prints all three."""
    for table in (formulas(found), losses(found), variants(found)):
        console.print(table)


def _table(title: str, first: str, *headings: str) -> Table:
    view = Table(first, title=title, title_style="bold", caption_justify="left", caption_style="")
    for heading in headings:
        view.add_column(heading, justify="right")
    return view


def formulas(found: dict) -> Table:
    """Mean squared errors: of each formula on a few sequences, of the streaming solve on all."""
    view = _table(
        "Mean squared error on one-hot targets times 1000", "", "tokens", "fitted", "held out", "s"
    )
    trivial = found["trivial_mse"]
    view.add_row("all weights 0: 1000^2 / vocabulary", "", f"{trivial:.2f}", f"{trivial:.2f}", "")
    for of_some in found["formulas"]:
        view.add_section()
        view.add_row("a fresh last layer", f"{of_some['tokens']}", f"{of_some['before']:.2f}")
        for name, of_one in of_some["losses"].items():
            loss = of_one["error"] or ("not finite" if of_one["mse"] is None else "")
            loss = loss or f"{of_one['mse']:.5g}"
            view.add_row(name, f"{of_some['tokens']}", loss, "", f"{of_one['seconds']:.3f}")
    for name, key in (("as initialised", "least_squares_untrained"), ("trained", "least_squares")):
        of_all = found[key]
        view.add_section()
        tokens = f"{of_all['tokens']:,}"
        for row, before, seconds in (
            ("a fresh last layer", "_before", ""),
            ("fusedstep LeastSquares", "", f"{of_all['solve_seconds']:.2f}"),
        ):
            view.add_row(
                f"{row}, mixer {name}",
                tokens,
                f"{of_all['mse' + before]:.2f}",
                f"{of_all['held_out_mse' + before]:.2f}",
                seconds,
            )
    one = found["formulas"][0]
    if one["rank"] < one["width"]:
        view.caption = (
            f"A sequence of {one['tokens']} tokens has {one['distinct']} distinct ones, so its "
            f"hidden states have rank {one['rank']} of {one['width']}:\nX.T @ X has no inverse. "
            "torch.pinverse takes float32's rounding errors for singular values.\n"
            "The article, whose vocabulary has 4096 tokens, saw 244.52 before fitting."
        )
    return view


def losses(found: dict) -> Table:
    """Held-out cross-entropy of the closed form beside AdamW's."""
    view = _table("Held-out cross-entropy, nats", "", "steps", "loss", "s")
    view.add_row("uniform guess", "", f"{found['uniform_loss']:.3f}", "")
    view.add_row("guess by frequency", "", f"{found['unigram_loss']:.3f}", "")
    solved = found["least_squares"]
    view.add_row(
        f"least squares, logits times {solved['temperature_factor']:.3g}",
        "",
        f"{solved['held_out_loss']:.3f}",
        f"{solved['seconds']:.2f}",
    )
    for name, key in (("last layer alone, frozen mixer", "adamw_head"), ("all", "adamw_whole")):
        view.add_section()
        for point in shown(found[key]):
            view.add_row(
                f"AdamW, {name}",
                f"{point['step']}",
                f"{point['held_out_loss']:.3f}",
                f"{point['seconds']:.2f}",
            )
    view.caption = (
        "The fair comparison is with the last layer alone: the same frozen hidden states.\n"
        "Least squares fits the probabilities themselves, where a softmax wants their logarithms:\n"
        "no temperature makes up for that."
    )
    return view


def shown(points: list[dict]) -> list[dict]:
    """Those after 1, 10, 100, 1000 steps and the last."""
    return [p for p in points if p["step"] in HORIZONS or p is points[-1]]


def variants(found: dict) -> Table:
    """Loss of each Newton variant on its batch, and the reason."""
    study = found["newton"]
    facts = study["facts"]
    view = _table(
        f"Newton from the same start on the same {facts['tokens']} tokens: "
        f"cross-entropy, {study['before']:.3f} before",
        "",
        "after 1",
        "after 5",
        "last",
        "steps",
        "s",
    )
    view.add_column("why", ratio=1)
    for name, outcome in study["variants"].items():
        path = outcome["losses"]
        end = "exploded" if outcome["exploded"] else ""
        view.add_row(
            name,
            _loss(path[0]),
            _loss(path[4]) if len(path) > 4 else "",
            _loss(path[-1]),
            f"{len(path)}",
            f"{outcome['seconds'][-1]:.1f}",
            outcome["reason"],
            style="red" if end else "",
        )
    view.caption = (
        f"{facts['classes']} classes occur; root-finders as published use the article's loss "
        "constants. In red: exploded."
    )
    return view


def _loss(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.3f}" if 1e-2 < value < 1e4 else f"{value:.1e}"
