"""Implicit bias: which of the many solutions gradient descent finds, in two solvable cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import nnls
from torch import Tensor

import fusedstep
from bench.drawing import BLUE, GREEN, GREY, ORANGE, curve, label, page, panel
from bench.studies.claims import Claim
from bench.studies.dynamics.section import Section
from bench.studies.stages import Stages


@dataclass(frozen=True)
class Settings:
    """Least squares with more unknowns than equations; logistic regression on separable points."""

    equations: int = 30
    unknowns: int = 100
    steps: int = 600
    points: int = 6
    logistic_steps: int = 300_000


@dataclass(frozen=True)
class Found:
    """Distances to the predicted solutions, and the logistic path at some of its steps."""

    settings: Settings
    from_zero: list[float]  # relative to the norm of the minimum-norm solution, as the others
    from_elsewhere: list[float]
    to_the_shortest: list[float]  # of the path from elsewhere: the distance that does not vanish
    margin: float  # the largest: 1 / |w| of the support vector machine
    steps: list[int]
    angles: list[float]  # distance of the unit vectors, path and max-margin direction
    lengths: list[float]  # of the path along the direction, in units of |w| of the machine
    losses: list[float]


def run(settings: Settings, stages: Stages) -> Found:
    """Both cases, by fusedstep.SGD on all examples."""
    generator = torch.Generator().manual_seed(0)
    shape = settings.equations, settings.unknowns
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    inverse = fusedstep.pinv(matrix)
    shortest = inverse @ target
    start = torch.randn(shape[1], generator=generator, dtype=torch.float64)
    # What cannot be seen in the equations stays as it was: the projection of the start.
    nearest = start + inverse @ (target - matrix @ start)

    zero, elsewhere = torch.zeros_like(start), start.clone()
    optimizer = fusedstep.SGD(
        [zero, elsewhere], lr=1 / float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    )
    found: list[list[float]] = [[], [], []]
    with stages.stage("Implicit bias: least squares", settings.steps) as stage:
        for _ in range(settings.steps):
            for series, w, end in zip(
                found, (zero, elsewhere, elsewhere), (shortest, nearest, shortest), strict=True
            ):
                series.append(float((w - end).norm() / shortest.norm()))
            for w in (zero, elsewhere):
                w.grad = matrix.T @ (matrix @ w - target)
            optimizer.step()
            stage.step()
    from_zero, from_elsewhere, to_the_shortest = found
    return Found(
        settings, from_zero, from_elsewhere, to_the_shortest, **_logistic(settings, stages)
    )


def _logistic(settings: Settings, stages: Stages) -> dict[str, Any]:
    """The path of logistic regression on two clouds of points with a gap between them."""
    generator = torch.Generator().manual_seed(1)
    cloud = torch.randn(settings.points, 2, generator=generator, dtype=torch.float64)
    # Two support vectors, and points beyond them in another direction, where the descent goes
    # first. The two have unequal weights in the solution, 0.4 and 0.1, as points in general do.
    support = torch.tensor([[0.5, 1.5], [3.0, -1.0]], dtype=torch.float64)
    signed = torch.cat([support, 0.3 * cloud + torch.tensor([3.0, 2.0])])
    machine = max_margin(signed)
    direction = machine / machine.norm()
    smoothness = float(torch.linalg.matrix_norm(signed, 2)) ** 2 / (4 * len(signed))

    w = torch.zeros(2, dtype=torch.float64)
    w.grad = torch.zeros_like(w)
    optimizer = fusedstep.SGD([w], lr=1 / smoothness)
    keep = {int(t) for t in np.geomspace(1, settings.logistic_steps, 120)}
    steps, angles, lengths, losses = [], [], [], []
    with stages.stage("Implicit bias: logistic regression", len(keep)) as stage:
        for t in range(1, settings.logistic_steps + 1):
            torch.mv(signed.T, torch.sigmoid(-(signed @ w)), out=w.grad).mul_(-1 / len(signed))
            optimizer.step()
            if t in keep:
                steps.append(t)
                angles.append(float((w / w.norm() - direction).norm()))
                lengths.append(float(w @ direction / machine.norm()))
                losses.append(float(torch.nn.functional.softplus(-signed @ w).mean()))
                stage.step()
    return {
        "margin": 1 / float(machine.norm()),
        "steps": steps,
        "angles": angles,
        "lengths": lengths,
        "losses": losses,
    }


def max_margin(signed: Tensor) -> Tensor:
    """The shortest w with signed @ w >= 1: the hard-margin support vector machine without bias.

    Lawson and Hanson 1974, chapter 23, section 4: it is a nonnegative least-squares problem.
    """
    stacked = np.vstack([signed.numpy().T, np.ones(len(signed))])
    last = np.zeros(len(stacked))
    last[-1] = 1.0
    residual = stacked @ nnls(stacked, last)[0] - last
    return torch.from_numpy(-residual[:-1] / residual[-1])


# --- claims ---


def gradient_descent_finds_the_pseudo_inverse(found: Found) -> Claim:
    """Gunasekar et al. 2018, arXiv 1802.08246, section 2."""
    return Claim(
        "Gradient descent from 0 finds the minimum-norm solution, equal to fusedstep.pinv(A) @ b",
        found.from_zero[-1] < 1e-12,
        f"relative distance {found.from_zero[-1]:.1e} after {len(found.from_zero)} steps",
    )


def from_elsewhere_it_finds_the_nearest(found: Found) -> Claim:
    """The same, for any start."""
    return Claim(
        "From another start it finds the nearest solution instead, which is not the shortest",
        found.from_elsewhere[-1] < 1e-12 and found.to_the_shortest[-1] > 0.1,
        f"relative distance {found.from_elsewhere[-1]:.1e} to the nearest, "
        f"{found.to_the_shortest[-1]:.2f} to the shortest",
    )


def logistic_regression_goes_to_the_max_margin(found: Found) -> Claim:
    """Soudry et al. 2018, arXiv 1710.10345, theorems 3 and 5: a bounded rest over the length."""
    late = np.array(found.steps) >= found.steps[-1] // 10
    rest = np.array(found.angles)[late] * np.array(found.lengths)[late]
    change = float(rest.max() / rest.min() - 1)
    longer = found.lengths[-1] / np.array(found.lengths)[late][0]
    return Claim(
        "Separable logistic regression turns to the max-margin direction as slowly as 1 / log t",
        change < 0.05 and longer > 1.2 and found.angles[-1] < 0.5 * max(found.angles),
        f"distance {found.angles[-1]:.3f} after {found.steps[-1]:,} steps; while the length grew "
        f"{longer:.2f} times, distance times length changed by {change:.1%}",
    )


def its_length_is_the_logarithm(found: Found) -> Claim:
    """Soudry et al. 2018, theorem 3: w(t) = w_svm log t + a bounded rest."""
    logs = np.log(found.steps)
    late = np.array(found.steps) >= found.steps[-1] // 100
    slope = float(np.polyfit(logs[late], np.array(found.lengths)[late], 1)[0])
    return Claim(
        "Meanwhile the weights grow as w_svm log t: slope 1",
        abs(slope - 1) < 0.1,
        f"slope {slope:.3f}; the loss is {found.losses[-1]:.1e} and still falls as 1 / t",
    )


# --- the figure ---


def draw(found: Found) -> Figure:
    """Distances to the solutions; the angle to the max-margin direction; the length."""
    figure, (squares, angle, length) = page(3)
    panel(
        squares, "Least squares: the nearest solution", "Distance from pinv's, over its norm",
        yscale="log", xlabel="step", ylabel="distance",
    )  # fmt: skip
    lines = [
        curve(squares, name, colour, range(len(series)), series)
        for name, colour, series in (
            ("from 0, to the shortest", BLUE, found.from_zero),
            ("from elsewhere, to the nearest", GREEN, found.from_elsewhere),
            ("from elsewhere, to the shortest", ORANGE, found.to_the_shortest),
        )
    ]
    label(squares, lines)
    logs = np.log(found.steps)
    panel(
        angle, "Logistic regression: the direction",
        "Dotted: proportional to 1 / length, that is to 1 / (log t + c)",
        xscale="log", xlabel="step", ylabel="distance to the max-margin direction",
    )  # fmt: skip
    angle.plot(found.steps, found.angles, color=BLUE)
    late = np.array(found.steps) >= 30
    lengths = np.array(found.lengths)[late]
    guide = found.angles[-1] * lengths[-1] / lengths
    angle.plot(np.array(found.steps)[late], guide, color=GREY, ls=":")
    panel(
        length, "Logistic regression: the length", "In units of the max-margin solution's",
        xscale="log", xlabel="step", ylabel="length along that direction",
    )  # fmt: skip
    length.plot(found.steps, found.lengths, color=BLUE)
    guide = found.lengths[-1] + logs - logs[-1]
    label(length, [curve(length, "log t + c", GREY, found.steps, guide, ls=":")])
    return figure


SECTION = Section(
    name="implicit_bias",
    question="Which of many solutions does gradient descent find?",
    settings=Settings(),
    quick=Settings(logistic_steps=20_000),
    run=run,
    claims=(
        gradient_descent_finds_the_pseudo_inverse,
        from_elsewhere_it_finds_the_nearest,
        logistic_regression_goes_to_the_max_margin,
        its_length_is_the_logarithm,
    ),
    draw=draw,
)
