"""Catapults, progressive sharpening and the edge of stability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import fusedstep
from bench.drawing import BLUE, GREEN, GREY, ORANGE, RED, Line, label, page, panel, plain
from bench.studies.claims import Claim
from bench.studies.dynamics.section import Section
from bench.studies.stages import Stages
from fusedstep.dynamics import preconditioned_sharpness, stability_threshold


@dataclass(frozen=True)
class Settings:
    """A catapult in two layers; a small tanh network on Chebyshev's polynomial, all examples."""

    catapult_width: int = 1000
    catapult_rates: tuple[float, ...] = (1.0, 2.5, 3.0, 3.5, 4.5)  # times 1 / sharpness
    catapult_steps: int = 60
    width: int = 40
    sgd_rates: tuple[float, ...] = (0.1, 0.2, 0.3)
    sgd_steps: int = 5000
    adam_rates: tuple[float, ...] = (1e-3, 2e-3)
    adam_steps: int = 3000
    every: int = 25  # steps between two measurements


@dataclass(frozen=True)
class Catapult:
    """Losses and sharpness before each step; the rate in units of 1 / the first sharpness."""

    rate: float
    losses: list[float]
    sharpness: list[float]


@dataclass(frozen=True)
class Run:
    """Steps, sharpness there (preconditioned, if the optimizer has a preconditioner), losses."""

    lr: float
    threshold: float
    steps: list[int]
    sharpness: list[float]
    losses: list[float]  # at the same steps


@dataclass(frozen=True)
class Found:
    """Catapults at each rate; a run of each optimizer at each of its rates."""

    settings: Settings
    catapults: list[Catapult]
    sgd: list[Run]
    adam: list[Run]


def run(settings: Settings, stages: Stages) -> Found:
    """All three, by fusedstep.SGD and fusedstep.Adam."""
    catapults = []
    with stages.stage("Edge: catapults", len(settings.catapult_rates)) as stage:
        for rate in settings.catapult_rates:
            catapults.append(_catapult(rate, settings))
            stage.step()
    sgd = [
        _train(fusedstep.SGD, lr, settings.sgd_steps, settings, stages) for lr in settings.sgd_rates
    ]
    adam = [
        _train(fusedstep.Adam, lr, settings.adam_steps, settings, stages)
        for lr in settings.adam_rates
    ]
    return Found(settings, catapults, sgd, adam)


def _train(kind: Any, lr: float, steps: int, settings: Settings, stages: Stages) -> Run:
    """A task of Cohen et al. 2021, appendix J: 20 points of Chebyshev's polynomial of degree 4."""
    torch.manual_seed(0)
    points = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    targets = torch.cos(4 * torch.arccos(points))
    width = settings.width
    model = nn.Sequential(
        nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    ).double()
    optimizer = kind(model.parameters(), lr=lr)

    def loss_fn() -> Tensor:
        return (model(points) - targets).square().mean() / 2

    measured: list[tuple[int, float, float]] = []
    with stages.stage(f"Edge: {kind.__name__}, rate {lr:g}", steps // settings.every) as stage:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss = loss_fn()
            loss.backward()
            optimizer.step()
            if step % settings.every == 0:
                curvature = preconditioned_sharpness(optimizer, loss_fn)
                measured.append((step, curvature, loss.item()))
                stage.step(f"sharpness {curvature:.3g}")
    return Run(lr, stability_threshold(optimizer), *map(list, zip(*measured, strict=True)))


def _catapult(rate: float, settings: Settings) -> Catapult:
    """Lewkowycz et al. 2020, equation 3: f = v . u / sqrt(width) for one input, target 0."""
    generator = torch.Generator().manual_seed(0)
    width = settings.catapult_width
    u, v = (torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(2))
    # An output of 1 at the start, as if drawn so: the component of v along u is set.
    v += u * (math.sqrt(width) - u @ v) / (u @ u)
    curvature = float((u @ u + v @ v) / width)
    optimizer = fusedstep.SGD([u, v], lr=rate / curvature)
    losses, curvatures = [], []
    for _ in range(settings.catapult_steps):
        output = u @ v / math.sqrt(width)
        losses.append(float(output) ** 2 / 2)
        curvatures.append(float((u @ u + v @ v) / width))
        if losses[-1] > 1e6:
            break
        u.grad, v.grad = (output / math.sqrt(width) * w for w in (v, u))
        optimizer.step()
    return Catapult(rate, losses, [value / curvatures[0] for value in curvatures])


# --- claims ---


def a_catapult_lands_where_it_is_flat(found: Found) -> Claim:
    """Lewkowycz et al. 2020, arXiv 2003.02218, section 2: lazy, catapult and divergent phases."""
    held, numbers = True, []
    for catapult in found.catapults:
        start, peak, end = catapult.losses[0], max(catapult.losses), catapult.losses[-1]
        flatness = catapult.sharpness[-1]
        if catapult.rate < 2:
            held &= peak == start and end < 1e-6 * start and abs(flatness - 1) < 0.1
        elif catapult.rate < 4:
            held &= peak > 10 * start and end < 1e-6 * start and flatness < 2 / catapult.rate
        else:
            held &= end > 1e6 * start
        landing = f"ends at {flatness:.2f} of the sharpness" if end < start else "diverges"
        numbers.append(f"{catapult.rate:g}: loss up to {peak / start:.2g} times, {landing}")
    return Claim(
        "Catapult: at rates of 2 to 4 over the sharpness the loss first grows, then the run lands "
        "where the sharpness is below 2 / lr",
        held,
        "; ".join(numbers),
    )


def training_sharpens(found: Found) -> Claim:
    """Cohen et al. 2021, arXiv 2103.00065, section 3.1."""
    rises = [max(run.sharpness) / run.sharpness[0] for run in found.sgd]
    below = [run.sharpness[0] / run.threshold for run in found.sgd]
    return Claim(
        "Progressive sharpening: from below the threshold, gradient descent raises the sharpness "
        "to it",
        all(rise > 1.5 for rise in rises) and max(below) < 0.95 and _reach(found.sgd),
        "from "
        + ", ".join(
            f"{share:.2f} of 2 / lr (lr = {run.lr:g})"
            for share, run in zip(below, found.sgd, strict=True)
        ),
    )


def gradient_descent_stays_at_two_over_lr(found: Found) -> Claim:
    """Cohen et al. 2021, section 3.2."""
    held, numbers = _hover(found.sgd)
    return Claim("Edge of stability: there it hovers, just at 2 / lr, and the loss still falls",
                 held, numbers)  # fmt: skip


def adam_stays_at_38_over_lr(found: Found) -> Claim:
    """Cohen et al. 2022, arXiv 2207.14484, section 3."""
    held, numbers = _hover(found.adam)
    return Claim("So does Adam: its preconditioned sharpness hovers at 38 / lr", held, numbers)


def _reach(runs: list[Run]) -> bool:
    return all(max(run.sharpness) > 0.95 * run.threshold for run in runs)


def _hover(runs: list[Run]) -> tuple[bool, str]:
    """Whether the mean over the last third is at the threshold, and the loss fell meanwhile."""
    held, numbers = _reach(runs), []
    for run in runs:
        late = len(run.steps) * 2 // 3
        mean = float(np.mean(run.sharpness[late:])) / run.threshold
        falls = float(np.mean(run.losses[-5:])) < 0.8 * max(run.losses[:5])
        held &= 0.9 < mean < 1.1 and falls
        numbers.append(
            f"lr = {run.lr:g}: {mean:.3f} of {run.threshold:.4g}, loss {run.losses[0]:.2g} to "
            f"{run.losses[-1]:.2g}"
        )
    return held, "; ".join(numbers)


# --- the figure ---


def draw(found: Found) -> Figure:
    """The catapults' losses; sharpness of gradient descent and of Adam over their thresholds."""
    figure, (catapult, sgd, adam) = page(3)
    panel(
        catapult, "Catapults",
        "Two linear layers, one example; λ: the sharpness, at the start and at the end",
        yscale="log", xlabel="step", ylabel="loss", xlim=(-1, 41), ylim=(1e-6, 1e4),
    )  # fmt: skip
    lines = []
    for one, colour in zip(found.catapults, (GREY, BLUE, GREEN, ORANGE, RED), strict=False):
        losses = np.array(one.losses)
        catapult.plot(losses, color=colour)
        landing = (
            "diverges" if one.losses[-1] > 1 else f"{one.sharpness[-1] * one.rate:.2f} at the end"
        )
        seen = [k for k, loss in enumerate(losses[:41]) if 1e-6 < loss < 1e4]
        text = f"lr λ = {one.rate:g}, {landing}"
        lines.append(Line(text, colour, seen[-1], losses[seen[-1]], tied=False))
    label(catapult, lines)
    for axes, runs, factor, title in (
        (sgd, found.sgd, "2", "Gradient descent: sharpness"),
        (adam, found.adam, "38", "Adam: preconditioned sharpness"),
    ):
        panel(
            axes, title, f"A small tanh network, all examples; dotted: {factor} / lr",
            yscale="log", xlabel="step", ylabel="sharpness",
        )  # fmt: skip
        lines = []
        for run, colour in zip(runs, (BLUE, GREEN, ORANGE), strict=False):
            axes.plot(run.steps, run.sharpness, color=colour, lw=1.2)
            axes.axhline(run.threshold, color=colour, lw=1, ls=":")
            lines.append(Line(f"lr = {run.lr:g}", colour, run.steps[-1], run.threshold))
        plain(axes.yaxis)
        label(axes, lines)
    return figure


SECTION = Section(
    name="edge",
    question="Why does the loss become unstable, and what happens then?",
    settings=Settings(),
    quick=Settings(
        width=30,
        sgd_rates=(0.2,),
        sgd_steps=2400,
        adam_rates=(2e-3,),
        adam_steps=1200,
    ),
    run=run,
    claims=(
        a_catapult_lands_where_it_is_flat,
        training_sharpens,
        gradient_descent_stays_at_two_over_lr,
        adam_stays_at_38_over_lr,
    ),
    draw=draw,
)
