"""The classical picture: what convexity, smoothness and curvature say about gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from torch import Tensor
from torch.nn.functional import softplus

import fusedstep
from bench.drawing import BLUE, GREY, ORANGE, Line, curve, label, page, panel
from bench.studies.claims import Claim
from bench.studies.dynamics.section import Section
from bench.studies.stages import Stages


@dataclass(frozen=True)
class Settings:
    """A quadratic with curvatures 1 / i^2, and logistic regression with a ridge."""

    dim: int = 10_000
    flat_steps: int = 10_000
    examples: int = 400
    features: int = 20
    ridge: float = 0.01
    steps: int = 1500
    newton_steps: int = 8


@dataclass(frozen=True)
class Found:
    """Losses above the minimum, before each step; the logistic loss's gradients' squared norms."""

    settings: Settings
    flat: list[float]
    flat_distance: float  # |start - minimum|^2 of the quadratic, whose smoothness is 1
    strong: list[float]
    gradients: list[float]
    smoothness: float  # L of the logistic loss
    newton: list[float]

    def drops(self) -> np.ndarray:
        """By how much each step lowers the loss, over what the descent lemma promises."""
        promised = np.array(self.gradients[:-1]) / (2 * self.smoothness)
        large = promised > 1e-12  # below: rounding of the losses
        return -np.diff(self.strong)[large] / promised[large]


def run(settings: Settings, stages: Stages) -> Found:
    """Gradient descent on both losses with steps 1 / L, and Newton's method on the second."""
    flat, distance = _quadratic(settings, stages)
    problem = Logistic(settings)
    newton = _newton(problem, settings, stages)
    w = problem.start()
    optimizer = fusedstep.SGD([w], lr=1 / problem.smoothness)
    losses, gradients = [], []
    with stages.stage("Convex: gradient descent", settings.steps) as stage:
        for _ in range(settings.steps):
            losses.append(float(problem.loss(w)))
            w.grad = problem.gradient(w)
            gradients.append(float(w.grad.square().sum()))
            optimizer.step()
            stage.step()
    minimum = newton[-1]
    return Found(
        settings,
        flat=flat,
        flat_distance=distance,
        strong=[loss - minimum for loss in losses],
        gradients=gradients,
        smoothness=problem.smoothness,
        newton=[loss - minimum for loss in newton],
    )


class Logistic:
    """Logistic regression with a ridge: mean log(1 + exp(-margin)) + ridge / 2 |w|^2."""

    def __init__(self, settings: Settings) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = settings.examples, settings.features
        scales = torch.logspace(0, -1, shape[1], dtype=torch.float64)  # of the features
        points = torch.randn(shape, generator=generator, dtype=torch.float64) * scales
        noise = torch.randn(shape[0], generator=generator, dtype=torch.float64)
        self.signed = points * (points[:, 0] + noise).sign()[:, None]
        self.ridge = settings.ridge
        gram = points.T @ points / (4 * shape[0])  # the Hessian's upper bound: p (1 - p) <= 1/4
        self.smoothness = float(torch.linalg.eigvalsh(gram)[-1]) + self.ridge

    def start(self) -> Tensor:
        return torch.zeros(self.signed.shape[1], dtype=torch.float64)

    def loss(self, w: Tensor) -> Tensor:
        return softplus(-self.signed @ w).mean() + self.ridge / 2 * w.square().sum()

    def gradient(self, w: Tensor) -> Tensor:
        wrong = torch.sigmoid(-self.signed @ w)
        return -(self.signed.T @ wrong) / len(self.signed) + self.ridge * w

    def hessian(self, w: Tensor) -> Tensor:
        wrong = torch.sigmoid(-self.signed @ w)
        weighted = self.signed * (wrong * (1 - wrong))[:, None]
        ridge = self.ridge * torch.eye(len(w), dtype=w.dtype)
        return weighted.T @ self.signed / len(self.signed) + ridge


def _quadratic(settings: Settings, stages: Stages) -> tuple[list[float], float]:
    """Losses of gradient descent where the curvatures have no useful lower bound.

    The start has |theta|^2 just finite, and so gradient descent is as slow as its bound allows.
    """
    index = torch.arange(1, settings.dim + 1, dtype=torch.float64)
    curvatures, theta = index**-2, index**-0.55
    distance = float(theta.square().sum())
    optimizer = fusedstep.SGD([theta], lr=1.0)
    losses = []
    with stages.stage("Convex: a flat quadratic", settings.flat_steps) as stage:
        for _ in range(settings.flat_steps):
            theta.grad = curvatures * theta
            losses.append(float(theta.grad @ theta) / 2)
            optimizer.step()
            stage.step()
    return losses, distance


def _newton(problem: Logistic, settings: Settings, stages: Stages) -> list[float]:
    w = problem.start()
    losses = [float(problem.loss(w))]
    with stages.stage("Convex: Newton's method", settings.newton_steps) as stage:
        for _ in range(settings.newton_steps):
            w = w - torch.linalg.solve(problem.hessian(w), problem.gradient(w))
            losses.append(float(problem.loss(w)))
            stage.step()
    return losses


# --- claims ---


def every_step_descends(found: Found) -> Claim:
    """Boyd and Vandenberghe 2004, equation 9.17."""
    drops = found.drops()
    least = float(drops.min())
    return Claim(
        "Descent lemma: a step of 1 / L lowers the loss by at least |g|^2 / (2 L)",
        least >= 1,
        f"the least of {len(drops)} steps lowers it {least:.3f} times as much",
    )


def convexity_gives_one_over_t(found: Found) -> Claim:
    """Nesterov 2018, Lectures on Convex Optimization, corollary 2.1.2."""
    t = np.arange(1, len(found.flat))
    share = np.array(found.flat[1:]) / (found.flat_distance / (2 * t))
    late = t >= t[-1] // 10
    slope = float(np.polyfit(np.log(t[late]), np.log(np.array(found.flat[1:])[late]), 1)[0])
    return Claim(
        "Convex and smooth: the loss falls as 1 / t, below L |start - minimum|^2 / (2 t)",
        float(share.max()) <= 1 and -1.15 < slope < -0.95,
        f"like t^{slope:.3f} over the last decade; at most {share.max():.2f} times the bound",
    )


def strong_convexity_gives_a_linear_rate(found: Found) -> Claim:
    """Boyd and Vandenberghe 2004, equation 9.18."""
    bound = 1 - found.settings.ridge / found.smoothness
    losses = np.array(found.strong)
    seen = losses > 1e-13
    ratios = losses[1:][seen[1:]] / losses[:-1][seen[1:]]
    middle = len(ratios) // 2
    drift = float(abs(np.log(ratios[-1]) / np.log(ratios[middle]) - 1))
    return Claim(
        "Strongly convex: each step keeps at most 1 - mu / L of the excess, a straight line",
        float(ratios.max()) <= bound and drift < 0.1,
        f"at most {ratios.max():.4f} a step, at the end {ratios[-1]:.4f}; 1 - mu / L = {bound:.4f}",
    )


def newton_doubles_the_digits(found: Found) -> Claim:
    """Boyd and Vandenberghe 2004, section 9.5.3."""
    logs = np.log([loss for loss in found.newton if loss > 1e-15])
    orders = logs[2:] / logs[1:-1]
    steps = len(logs)
    gradient = sum(loss > 1e-12 for loss in found.strong)
    return Claim(
        "Newton's method squares the excess: twice the digits with every step",
        bool(orders[-1] > 1.7) and gradient > 20 * steps,
        f"the last step has {orders[-1]:.2f} times the digits; {steps} steps to rounding, gradient "
        f"descent {'more than ' if gradient == len(found.strong) else ''}{gradient} to 1e-12",
    )


# --- the figure ---


def draw(found: Found) -> Figure:
    """What the descent lemma promises; 1 / t; a straight line against Newton."""
    figure, (lemma, flat, strong) = page(3)
    drops = found.drops()
    panel(
        lemma, "The descent lemma", "Logistic regression with a ridge, steps of 1 / L",
        xlabel="step", ylabel="drop of the loss, times 2 L / |g|²", ylim=(0, 2.1),
    )  # fmt: skip
    lines = [curve(lemma, "gradient descent", BLUE, range(len(drops)), drops)]
    lemma.axhline(1, color=GREY, ls=":")
    lemma.yaxis.set_major_locator(MultipleLocator(0.5))
    label(lemma, [*lines, Line("|g|² / (2 L)", GREY, len(drops) - 1, 1.0)])
    t = np.arange(1, len(found.flat))
    bound = found.flat_distance / (2 * t)
    panel(
        flat, "Convex: 1 / t",
        "A quadratic with curvatures 1 / i²; bound: L |start - minimum|² / 2t",
        xscale="log", yscale="log", xlabel="step", ylabel="loss above the minimum",
    )  # fmt: skip
    lines = [
        curve(flat, "gradient descent", BLUE, t, found.flat[1:]),
        curve(flat, "bound", GREY, t, bound, ls=":"),
    ]
    label(flat, lines)
    panel(
        strong, "Strongly convex: a straight line; Newton: a parabola",
        "Logistic regression with a ridge; bound: (1 - µ / L)^t",
        yscale="log", xlabel="step", ylabel="loss above the minimum",
    )  # fmt: skip
    steps = np.arange(len(found.strong))
    line = found.strong[0] * (1 - found.settings.ridge / found.smoothness) ** steps
    losses = np.maximum(found.strong, 1e-15)
    end = int(np.argmax(losses <= 1e-13)) or len(losses)
    lines = [
        curve(strong, "gradient descent", BLUE, steps[:end], losses[:end]),
        curve(strong, "bound", GREY, steps[:end], line[:end], ls=":"),
    ]
    newton = [loss for loss in found.newton if loss > 1e-16]
    strong.plot(range(len(newton)), newton, color=ORANGE, marker="o", markersize=4)
    strong.annotate(
        f"Newton: {len(newton) - 1} steps", (len(newton) - 1, newton[-1]), (12, 0),
        textcoords="offset points", color=ORANGE, fontsize=9, va="center",
    )  # fmt: skip
    label(strong, lines)
    return figure


SECTION = Section(
    name="convex",
    question="How fast does the loss of a convex problem fall?",
    settings=Settings(),
    quick=Settings(dim=3000, flat_steps=2000, steps=600),
    run=run,
    claims=(
        every_step_descends,
        convexity_gives_one_over_t,
        strong_convexity_gives_a_linear_rate,
        newton_doubles_the_digits,
    ),
    draw=draw,
)
