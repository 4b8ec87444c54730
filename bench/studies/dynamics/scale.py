"""Scale: what a normalization makes invariant, and how the best rate depends on the width."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

import fusedstep
from bench.drawing import BLUE, GREEN, RED, curve, label, page, panel, shades
from bench.studies.claims import Claim
from bench.studies.dynamics.section import Section
from bench.studies.stages import Stages


@dataclass(frozen=True)
class Settings:
    """A normalized network at several scales; MLPs of several widths over a grid of rates."""

    scales: tuple[float, ...] = (0.25, 1.0, 4.0)
    scale_steps: int = 200
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    rates: tuple[float, ...] = tuple(2.0**k for k in range(-13, -3))
    steps: int = 100
    batch: int = 64
    average: int = 20


@dataclass(frozen=True)
class Found:
    """Losses of each scale with the rate left as it is and in proportion to |w|^2; final losses."""

    settings: Settings
    fixed: dict[float, list[float]]
    scaled: dict[float, list[float]]
    norms: list[float]  # |w|^2 over its start, of the smallest scale at the fixed rate
    standard: dict[int, dict[float, float]]  # width, rate: loss
    transferred: dict[int, dict[float, float]]


def run(settings: Settings, stages: Stages) -> Found:
    """Invariance by fusedstep.SGD, width transfer by fusedstep.Adam."""
    fixed, scaled = {}, {}
    norms: list[float] = []
    with stages.stage("Scale: invariance", 2 * len(settings.scales)) as stage:
        for scale in settings.scales:
            fixed[scale], seen = _normalized(scale, 0.5, settings)
            norms = seen if scale == min(settings.scales) else norms
            stage.step()
            scaled[scale], _ = _normalized(scale, 0.5 * scale**2, settings)
            stage.step()
    grids: list[dict[int, dict[float, float]]] = []
    for name, transfer in (("standard", False), ("maximal update", True)):
        grid: dict[int, dict[float, float]] = {}
        with stages.stage(f"Scale: {name}", len(settings.widths) * len(settings.rates)) as stage:
            for width in settings.widths:
                grid[width] = {}
                for lr in settings.rates:
                    grid[width][lr] = _transfer(width, lr, transfer, settings)
                    stage.step(f"width {width}")
        grids.append(grid)
    return Found(settings, fixed, scaled, norms, *grids)


class Teacher:
    """Classes of random inputs, by the largest output of a fixed random network."""

    def __init__(self, inputs: int = 32, classes: int = 10) -> None:
        generator = torch.Generator().manual_seed(7)
        self.inputs, self.classes = inputs, classes
        self.first = torch.randn(inputs, 64, generator=generator) / math.sqrt(inputs)
        self.last = torch.randn(64, classes, generator=generator)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        points = torch.randn(count, self.inputs, generator=generator)
        return points, (torch.relu(points @ self.first) @ self.last).argmax(1)


def _normalized(scale: float, lr: float, settings: Settings) -> tuple[list[float], list[float]]:
    """A network whose output does not depend on the scale of its trained weights."""
    teacher = Teacher()
    generator = torch.Generator().manual_seed(0)
    points, classes = teacher.sample(256, generator)
    points = points.double()
    shapes = ((teacher.inputs, 64), (64, 64))
    weights = [
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64) / 8).requires_grad_()
        for shape in shapes
    ]
    last = torch.randn(64, teacher.classes, generator=generator, dtype=torch.float64) / 8
    optimizer = fusedstep.SGD(weights, lr=lr)
    losses, norms = [], []
    for _ in range(settings.scale_steps):
        x = points
        for weight in weights:
            x = torch.tanh(layer_norm(x @ weight, (64,), eps=0.0))
        loss = cross_entropy(x @ last, classes)
        losses.append(loss.item())
        norms.append(float(weights[0].detach().square().sum()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, [norm / norms[0] for norm in norms]


def _transfer(width: int, lr: float, transfer: bool, settings: Settings) -> float:
    """The last losses of an MLP trained by Adam.

    Maximal update (Yang et al. 2022, arXiv 2203.03466, table 8): against standard, the rates of the
    hidden and the last matrix fall as 1 / width, and the last one's output starts at 0. Both agree
    at the smallest width of the grid, up to that start.
    """
    torch.manual_seed(0)
    teacher = Teacher()
    layers = [nn.Linear(teacher.inputs, width), nn.Linear(width, width), nn.Linear(width, width)]
    last = nn.Linear(width, teacher.classes)
    for layer in (*layers, last):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    if transfer:
        nn.init.zeros_(last.weight)
    narrower = settings.widths[0] / width if transfer else 1.0
    wide = [layers[1].weight, layers[2].weight, last.weight]
    rest = [layers[0].weight, *(layer.bias for layer in (*layers, last))]
    optimizer = fusedstep.Adam([{"params": wide, "lr": lr * narrower}, {"params": rest, "lr": lr}])
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(settings.steps):
        x, classes = teacher.sample(settings.batch, generator)
        for layer in layers:
            x = torch.relu(layer(x))
        loss = cross_entropy(last(x), classes)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end = float(np.mean(losses[-settings.average :]))
    return end if math.isfinite(end) else math.inf


# --- claims ---


def training_does_not_see_the_scale(found: Found) -> Claim:
    """van Laarhoven 2017, arXiv 1706.05350, section 2: the effective rate is lr / |w|^2."""
    runs = np.array(list(found.scaled.values()))
    others = np.array(list(found.fixed.values()))
    same, different = (float(np.ptp(values, axis=0).max()) for values in (runs, others))
    return Claim(
        "With normalization, weights c times larger and a rate c^2 times larger train the same",
        same < 1e-9 and different > 0.1,
        f"losses differ by at most {same:.1e} over scales of {min(found.scaled):g} to "
        f"{max(found.scaled):g}; by {different:.2f} at one rate",
    )


def the_weights_grow(found: Found) -> Claim:
    """Arora et al. 2018, arXiv 1812.03981, lemma 2.4: the gradient is orthogonal to the weights."""
    least = float(np.diff(found.norms).min())
    return Claim(
        "A gradient step can only lengthen such weights: the effective rate falls by itself",
        least >= 0 and found.norms[-1] > 1.1,
        f"|w|^2 grows {found.norms[-1]:.2f} times, in every step",
    )


def the_best_rate_transfers(found: Found) -> Claim:
    """Yang et al. 2022, arXiv 2203.03466, figure 1."""
    shifts = []
    for grid in (found.standard, found.transferred):
        best = {width: best_rate(ends) for width, ends in grid.items()}
        shifts.append(best[min(best)] / best[max(best)])
    wider = max(found.standard) / min(found.standard)
    return Claim(
        "The best rate is that of a narrow network in the maximal-update parametrization, and "
        "falls with the width in the standard one",
        shifts[0] > 3 and 0.5 < shifts[1] < 2,
        f"{wider:.0f} times the width: {shifts[0]:.1f} times less in the standard, "
        f"{shifts[1]:.1f} times less in the maximal-update parametrization",
    )


def best_rate(ends: dict[float, float]) -> float:
    """The minimum of a parabola through the best rate's loss and its neighbours', in log rates."""
    rates = sorted(ends)
    losses = np.array([ends[rate] for rate in rates])
    at = int(np.argmin(losses))
    near = slice(max(0, at - 1), at + 2)
    if near.stop - near.start < 3 or near.stop > len(rates) or not np.isfinite(losses[near]).all():
        return rates[at]
    square, slope, _ = np.polyfit(np.log(rates[near]), losses[near], 2)
    return float(np.exp(-slope / (2 * square))) if square > 0 else rates[at]


# --- the figure ---


def draw(found: Found) -> Figure:
    """Losses at several scales; loss against rate for each width in both parametrizations."""
    figure, (scale, standard, transferred) = page(3)
    panel(
        scale, "With normalization only lr / |w|² matters",
        "Lines: the same rate; dots: lr in proportion to the square of the weights' scale",
        xlabel="step", ylabel="cross-entropy, nats",
    )  # fmt: skip
    colours = (RED, BLUE, GREEN)
    lines = [
        curve(scale, f"weights times {size:g}", colour, range(len(losses)), losses)
        for (size, losses), colour in zip(found.fixed.items(), colours, strict=False)
    ]
    for place, (losses, colour) in enumerate(zip(found.scaled.values(), colours, strict=False)):
        some = np.arange(4 * place, len(losses), 12)  # their dots in turn, on one line
        scale.plot(some, np.array(losses)[some], "o", markersize=4, color=colour)
    label(scale, lines)
    worst = max(ends[rate] for ends in found.transferred.values() for rate in ends)
    floor = min(
        min(ends.values()) for grid in (found.standard, found.transferred) for ends in grid.values()
    )
    for axes, grid, title in (
        (standard, found.standard, "Standard parametrization"),
        (transferred, found.transferred, "Maximal update"),
    ):
        panel(
            axes, title, "Loss after training with Adam; diamonds: the best rate",
            xscale="log", xlabel="learning rate", ylabel="cross-entropy, nats",
            ylim=(floor - 0.05, min(2.4, worst + 0.05)),
        )  # fmt: skip
        lines = []
        for (width, ends), colour in zip(grid.items(), shades(len(grid)), strict=True):
            rates = sorted(ends)
            losses = [min(ends[rate], 10.0) for rate in rates]
            name = f"width {width}"
            lines.append(curve(axes, name, colour, rates, losses, marker="o", markersize=3.5))
            at = best_rate(ends)
            height = float(np.interp(np.log(at), np.log(rates), losses))
            axes.plot(
                at, height, "D", markersize=9, color=colour, markeredgecolor="white", zorder=3
            )
        label(axes, lines)
    return figure


SECTION = Section(
    name="scale",
    question="What do the scale of the weights and the width of the layers change?",
    settings=Settings(),
    quick=Settings(
        scale_steps=60,
        widths=(64, 512),
        rates=tuple(2.0**k for k in range(-12, -4)),
        steps=50,
        average=10,
    ),
    run=run,
    claims=(training_does_not_see_the_scale, the_weights_grow, the_best_rate_transfers),
    draw=draw,
)
