"""The end of the classical picture: the same training loss, a different test loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import fusedstep
from bench.drawing import BLUE, GREEN, ORANGE, PURPLE, RED, curve, label, page, panel, plain
from bench.studies.claims import Claim
from bench.studies.dynamics.section import Section
from bench.studies.stages import Stages


@dataclass(frozen=True)
class Way:
    """How a run trains: optimizer, rate, examples a step and the size of the start."""

    kind: Any
    lr: float
    batch: int
    start: float
    colour: str


@dataclass(frozen=True)
class Settings:
    """Sparse regression with more unknowns than examples, by a diagonal linear network u^2 - v^2.

    Woodworth et al. 2020, arXiv 2002.09277: 5 of 100 weights are not 0, 40 examples without noise.
    """

    unknowns: int = 100
    examples: int = 40
    sparsity: int = 5
    problems: int = 12
    target: float = 1e-6  # training loss at which a run ends
    most_steps: int = 60_000
    ways: tuple[str, ...] = ("GD", "GD, larger start", "SGD, rate 0.005", "SGD, rate 0.025", "Adam")


WAYS = {
    "GD": Way(fusedstep.SGD, 0.1, 40, 0.1, BLUE),
    "GD, larger start": Way(fusedstep.SGD, 0.1, 40, 0.3, PURPLE),
    "SGD, rate 0.005": Way(fusedstep.SGD, 0.005, 1, 0.1, ORANGE),
    "SGD, rate 0.025": Way(fusedstep.SGD, 0.025, 1, 0.1, GREEN),
    "Adam": Way(fusedstep.Adam, 0.01, 40, 0.1, RED),
}


@dataclass(frozen=True)
class Run:
    """Losses at some steps: on the examples, and of new ones without noise, |w - truth|^2 / 2."""

    train: list[float]
    test: list[float]


@dataclass(frozen=True)
class Found:
    """Of each way a run a problem."""

    settings: Settings
    runs: dict[str, list[Run]]

    def median(self, way: str) -> float:
        """Test loss at the end."""
        return float(np.median([run.test[-1] for run in self.runs[way]]))


def run(settings: Settings, stages: Stages) -> Found:
    """All ways on all problems, each until its training loss is at the target."""
    runs: dict[str, list[Run]] = {}
    for name in settings.ways:
        with stages.stage(f"Generalization: {name}", settings.problems) as stage:
            runs[name] = []
            for problem in range(settings.problems):
                runs[name].append(_train(WAYS[name], problem, settings))
                stage.step()
    return Found(settings, runs)


def _train(way: Way, problem: int, settings: Settings) -> Run:
    generator = torch.Generator().manual_seed(problem)
    shape = settings.examples, settings.unknowns
    points = torch.randn(shape, generator=generator, dtype=torch.float64)
    truth = torch.zeros(settings.unknowns, dtype=torch.float64)
    truth[: settings.sparsity] = 1 - 2 * (torch.arange(settings.sparsity) % 2)
    targets = points @ truth
    u = torch.full_like(truth, way.start)
    v = u.clone()
    optimizer = way.kind([u, v], lr=way.lr)
    train, test = [], []
    for step in range(settings.most_steps):
        w = u * u - v * v
        if step % 20 == 0:
            train.append(float((points @ w - targets).square().mean() / 2))
            test.append(float((w - truth).square().sum() / 2))
            if not train[-1] > settings.target:
                break
        x, y = points, targets
        if way.batch < settings.examples:
            chosen = torch.randint(0, settings.examples, (way.batch,), generator=generator)
            x, y = x[chosen], y[chosen]
        gradient = x.T @ (x @ w - y) / way.batch
        u.grad, v.grad = 2 * u * gradient, -2 * v * gradient
        optimizer.step()
    return Run(train, test)


# --- claims ---


def the_optimizer_decides(found: Found) -> Claim:
    """Wilson et al. 2017, arXiv 1705.08292: adaptive methods find other solutions."""
    gd, adam = found.median("GD"), found.median("Adam")
    return Claim(
        "Same training loss, different test loss, by the optimizer: gradient descent and Adam",
        _reached(found, "GD", "Adam") and adam > 2 * gd,
        f"both below {found.settings.target:g} on the examples, {gd:.2f} and {adam:.2f} on "
        f"new ones (medians of {found.settings.problems} problems)",
    )


def the_rate_decides(found: Found) -> Claim:
    """Even et al. 2023, arXiv 2302.08982: large steps of SGD favour sparse solutions."""
    small, large = "SGD, rate 0.005", "SGD, rate 0.025"
    ratios = [
        many.test[-1] / few.test[-1]
        for few, many in zip(found.runs[small], found.runs[large], strict=True)
    ]
    better = sum(ratio < 1 for ratio in ratios)
    return Claim(
        "By the rate: SGD with a larger one generalizes better from the same training loss",
        _reached(found, small, large) and float(np.median(ratios)) < 0.85,
        f"medians {found.median(small):.2f} and {found.median(large):.2f}; the larger rate is "
        f"better in {better} of {len(ratios)} problems, {np.median(ratios):.2f} times (median)",
    )


def the_start_decides(found: Found) -> Claim:
    """Woodworth et al. 2020, arXiv 2002.09277: kernel and rich regimes."""
    small, large = found.median("GD"), found.median("GD, larger start")
    return Claim(
        "By the start: from smaller weights gradient descent finds sparser solutions",
        _reached(found, "GD", "GD, larger start") and large > 1.5 * small,
        f"{small:.2f} from weights of {WAYS['GD'].start}, "
        f"{large:.2f} from {WAYS['GD, larger start'].start}",
    )


def _reached(found: Found, *ways: str) -> bool:
    return all(run.train[-1] <= found.settings.target for way in ways for run in found.runs[way])


# --- the figure ---


def draw(found: Found) -> Figure:
    """Paths of training and test loss on one problem; the test losses of all problems."""
    figure, (path, ends) = page(2)
    panel(
        path, "One training loss, many test losses",
        "Sparse regression, one problem; training goes from left to right",
        xscale="log", yscale="log", xlabel="training loss", ylabel="test loss",
    )  # fmt: skip
    lines = []
    for name, runs in found.runs.items():
        colour, one = WAYS[name].colour, runs[0]
        lines.append(curve(path, name, colour, one.train, one.test, lw=1.3))
        path.plot(one.train[-1], one.test[-1], "o", color=colour)
    path.invert_xaxis()
    plain(path.yaxis)
    label(path, lines)
    panel(
        ends, "Test loss at equal training loss",
        f"{found.settings.problems} problems, each to {found.settings.target:g}; bars: medians",
        xscale="log", xlabel="test loss",
    )  # fmt: skip
    order = sorted(found.runs, key=found.median)
    for height, name in enumerate(order):
        tests = [run.test[-1] for run in found.runs[name]]
        ends.plot(tests, [height] * len(tests), "o", color=WAYS[name].colour, alpha=0.5)
        ends.plot([found.median(name)] * 2, [height - 0.3, height + 0.3], lw=3,
                  color=WAYS[name].colour)  # fmt: skip
    plain(ends.xaxis)
    ends.set_yticks(range(len(order)), order)
    for text, name in zip(ends.get_yticklabels(), order, strict=True):
        text.set_color(WAYS[name].colour)
    return figure


SECTION = Section(
    name="generalization",
    question="Does the training loss decide how well a model generalizes?",
    settings=Settings(),
    quick=Settings(problems=4, target=1e-4),
    run=run,
    claims=(the_optimizer_decides, the_rate_decides, the_start_decides),
    draw=draw,
)
