"""The neural tangent kernel: a wide network trains as its linearization, a narrow one does not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import fusedstep
from bench.drawing import BLUE, GREEN, GREY, RED, curve, label, page, panel, shades
from bench.studies.claims import Claim
from bench.studies.dynamics.section import Section
from bench.studies.stages import Stages
from fusedstep.dynamics import kernel_prediction, ntk


@dataclass(frozen=True)
class Settings:
    """Two layers of tanh on the circle, in the kernel's parametrization, for several widths."""

    widths: tuple[int, ...] = (8, 32, 128, 512, 2048, 8192)
    seeds: int = 4
    examples: int = 24
    steps: int = 300
    measured: int = 30  # steps at which the prediction is compared


@dataclass(frozen=True)
class Found:
    """For each width: losses of the first seed's run and of its prediction; medians over seeds."""

    settings: Settings
    steps: list[int]
    losses: dict[int, list[float]]
    predicted: dict[int, list[float]]
    off: dict[int, float]  # |residual - prediction| over |residual at the start|, at its largest
    kernel_change: dict[int, float]  # relative change of the kernel by training
    weight_change: dict[int, float]  # relative change of the weights


def run(settings: Settings, stages: Stages) -> Found:
    """Trains each width from several starts by fusedstep.SGD on all examples."""
    steps = sorted({int(t) for t in np.geomspace(1, settings.steps, settings.measured)})
    found = Found(settings, steps, {}, {}, {}, {}, {})
    for width in settings.widths:
        runs = []
        with stages.stage(f"Kernel: width {width}", settings.seeds) as stage:
            for seed in range(settings.seeds):
                runs.append(_train(width, seed, steps, settings))
                stage.step()
        found.losses[width], found.predicted[width] = runs[0][:2]
        for place, values in enumerate((found.off, found.kernel_change, found.weight_change)):
            values[width] = float(np.median([one[2 + place] for one in runs]))
    return found


class Network(nn.Module):
    """f(x) = v . tanh(W x) / sqrt(width), all weights drawn from N(0, 1): Jacot et al., section 2.

    The output starts at 0, by the difference of two copies (Chizat et al. 2019, section 2.2), so
    that only the kernel depends on the width.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        first, last = (torch.randn(half, n, dtype=torch.float64) for n in (2, 1))
        self.first = nn.Parameter(torch.cat([first, first]))
        self.last = nn.Parameter(torch.cat([last, -last])[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first.T) @ self.last / math.sqrt(len(self.last))


def _train(width: int, seed: int, steps: list[int], settings: Settings) -> tuple:
    torch.manual_seed(seed)
    angles = 2 * math.pi * torch.arange(settings.examples, dtype=torch.float64) / settings.examples
    points = torch.stack([angles.cos(), angles.sin()], 1)
    targets = 3 * angles.cos() + 1.5 * (3 * angles).sin()
    model = Network(width)
    kernel = ntk(model, points)
    lr = settings.examples / float(torch.linalg.eigvalsh(kernel)[-1])
    start = (model(points) - targets).detach()
    predicted = kernel_prediction(kernel, start, lr, steps)
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = fusedstep.SGD(model.parameters(), lr=lr)
    residuals = []
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad()
        (model(points) - targets).square().mean().div(2).backward()
        optimizer.step()
        if step in steps:
            residuals.append((model(points) - targets).detach())
    trained = torch.stack(residuals)
    off = float(((trained - predicted).norm(dim=1) / start.norm()).max())
    change = float((ntk(model, points) - kernel).norm() / kernel.norm())
    moved = math.hypot(
        *(
            float((param.detach() - start).norm())
            for param, start in zip(model.parameters(), before, strict=True)
        )
    )
    size = math.hypot(*(float(b.norm()) for b in before))
    losses = trained.square().mean(1) / 2, predicted.square().mean(1) / 2
    return *(series.tolist() for series in losses), off, change, moved / size


# --- claims ---


def a_wide_network_follows_its_kernel(found: Found) -> Claim:
    """Jacot et al. 2018, arXiv 1806.07572, theorem 2; Lee et al. 2019, arXiv 1902.06720."""
    wide, narrow = max(found.off), min(found.off)
    return Claim(
        "A wide network follows its kernel's prediction, a narrow one leaves it",
        found.off[wide] < 0.02 and found.off[narrow] > 0.1,
        f"width {wide}: at most {found.off[wide]:.2%} off, width {narrow}: {found.off[narrow]:.0%}",
    )


def the_kernel_freezes(found: Found) -> Claim:
    """Lee et al. 2019, theorem 2.1: weights and kernel move by 1 / sqrt(width), relatively."""
    widths = np.log([width for width in found.off if width >= 32])
    slopes = [
        float(np.polyfit(widths, np.log([values[round(math.exp(w))] for w in widths]), 1)[0])
        for values in (found.weight_change, found.kernel_change)
    ]
    return Claim(
        "The relative change of the weights falls as 1 / sqrt(width), and the kernel freezes",
        abs(slopes[0] + 0.5) < 0.1 and slopes[1] < -0.4,
        f"weights like width^{slopes[0]:.2f}, kernel like width^{slopes[1]:.2f}",
    )


# --- the figure ---


def draw(found: Found) -> Figure:
    """Training curves over their predictions for each width; what moves, against width."""
    figure, (curves, change) = page(2)
    panel(
        curves, "A wide network follows its kernel", "Lines: training; dots: the prediction",
        xscale="log", yscale="log", xlabel="step", ylabel="loss",
    )  # fmt: skip
    lines = []
    for (width, losses), colour in zip(
        found.losses.items(), shades(len(found.losses)), strict=True
    ):
        lines.append(curve(curves, f"width {width}", colour, found.steps, losses))
        curves.plot(found.steps, found.predicted[width], "o", markersize=3.5, color=colour)
    label(curves, lines)
    panel(
        change, "What training changes", "Median of several starts; dotted: 1 / sqrt(width)",
        xscale="log", yscale="log", xlabel="width", ylabel="relative change",
    )  # fmt: skip
    widths = list(found.off)
    lines = [
        curve(change, name, colour, widths, list(values.values()), marker="o", markersize=4)
        for name, colour, values in (
            ("residuals from the prediction", RED, found.off),
            ("kernel", BLUE, found.kernel_change),
            ("weights", GREEN, found.weight_change),
        )
    ]
    guide = np.array(widths[1:])
    change.plot(guide, found.weight_change[widths[-1]] * (guide[-1] / guide) ** 0.5 * 0.8,
                color=GREY, ls=":")  # fmt: skip
    label(change, lines)
    return figure


SECTION = Section(
    name="kernel",
    question="When does a network train as a kernel?",
    settings=Settings(),
    quick=Settings(widths=(8, 32, 128, 512, 2048), seeds=3, steps=200),
    run=run,
    claims=(a_wide_network_follows_its_kernel, the_kernel_freezes),
    draw=draw,
)
