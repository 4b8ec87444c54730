"""How much loss AdamW left in the last layer, for people."""

from rich.table import Table


def table(found: dict) -> Table:
    """Before, after each step of Newton-CG, and the best mixture of both layers."""
    steps, best = found["steps"], found["best"]
    view = Table(
        "last layer",
        title=f"Cross-entropy in nats; {found['tokens']:,} training tokens solved for",
        title_style="bold",
        caption_justify="left",
        caption_style="",
    )
    for heading in ("those tokens", "held out", "s"):
        view.add_column(heading, justify="right")
    names = ["as AdamW left it", *(f"Newton-CG, step {n}" for n in range(1, len(steps)))]
    for name, point in zip(names, steps, strict=True):
        view.add_row(
            name,
            f"{point['loss']:.4f}",
            f"{point['held_out_loss']:.4f}",
            f"{point['seconds']:.1f}",
        )
    view.add_section()
    view.add_row(f"the best on the way: {best['way']}", "", f"{best['held_out_loss']:.4f}")
    first, last = steps[0], steps[-1]
    rest = "" if found["converged"] else ", and it still falls"
    view.caption = (
        f"On the tokens solved for AdamW left {first['loss'] - last['loss']:.3f} nats{rest}. Held "
        f"out, the last layer is off by {last['held_out_loss'] - first['held_out_loss']:+.3f}:\n"
        f"{found['parameters']:,} weights fit {found['tokens']:,} tokens too well. The best on the "
        "way was chosen on other held-out text;\nit changes the loss by "
        f"{best['held_out_loss'] - first['held_out_loss']:+.3f}, which is what AdamW left. The "
        "model's output matrix is its embedding:\nhere they part, and only a copy is solved."
    )
    return view
