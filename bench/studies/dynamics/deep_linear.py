"""Deep linear networks: modes learned one after the other, and so a rank that grows by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import fusedstep
from bench.drawing import GREY, curve, label, page, panel, shades
from bench.studies.claims import Claim
from bench.studies.dynamics.section import Section
from bench.studies.stages import Stages
from fusedstep.dynamics import deep_linear_modes


@dataclass(frozen=True)
class Settings:
    """Two layers, a target of rank 4, a small random start that is not aligned with it."""

    strengths: tuple[float, ...] = (5.0, 3.0, 2.0, 1.0)
    inputs: int = 20
    hidden: int = 100
    outputs: int = 15
    scale: float = 1e-4  # of each weight at the start
    lr: float = 0.01
    steps: int = 1500


@dataclass(frozen=True)
class Found:
    """Strengths of the modes after each step, [steps + 1, modes], and the product's errors."""

    settings: Settings
    modes: np.ndarray
    predicted: np.ndarray
    errors: np.ndarray  # [steps + 1, modes + 1]: distance to the target cut to rank 0, 1, ...


def run(settings: Settings, stages: Stages) -> Found:
    """Trains both layers by fusedstep.SGD on 1/2 |W2 W1 - target|^2."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    s = torch.tensor(settings.strengths, dtype=torch.float64)
    left = torch.linalg.qr(randn(settings.outputs, len(s)))[0]
    right = torch.linalg.qr(randn(settings.inputs, len(s)))[0]
    target = left * s @ right.T
    cut = [left[:, :k] * s[:k] @ right[:, :k].T for k in range(len(s) + 1)]

    first = settings.scale * randn(settings.hidden, settings.inputs)
    second = settings.scale * randn(settings.outputs, settings.hidden)
    # Of a small start only the part that grows matters: in each mode the mean of both layers.
    growing = (first @ right + second.T @ left) / 2
    predicted = deep_linear_modes(s, growing.square().sum(0), settings.lr, settings.steps)

    optimizer = fusedstep.SGD([first, second], lr=settings.lr)
    modes, errors = [], []
    with stages.stage("Deep linear network", settings.steps) as stage:
        for step in range(settings.steps + 1):
            product = second @ first
            modes.append((left.T @ product @ right).diagonal().clone())
            errors.append([float((product - rank).norm() / target.norm()) for rank in cut])
            if step == settings.steps:
                break
            residual = product - target
            first.grad, second.grad = second.T @ residual, residual @ first.T
            optimizer.step()
            stage.step()
    return Found(settings, torch.stack(modes).numpy(), predicted.numpy(), np.array(errors))


def halfway(modes: np.ndarray, strengths: tuple[float, ...]) -> list[int]:
    """For each mode the first step at which it has half its strength; the last step if none."""
    reached = modes >= np.array(strengths) / 2
    return [int(row.argmax()) if row.any() else len(modes) - 1 for row in reached.T]


# --- claims ---


def modes_are_learned_at_the_predicted_times(found: Found) -> Claim:
    """Saxe, McClelland and Ganguli 2014, arXiv 1312.6120, equations 8 and 9."""
    strengths = found.settings.strengths
    measured, predicted = halfway(found.modes, strengths), halfway(found.predicted, strengths)
    off = max(abs(m / p - 1) for m, p in zip(measured, predicted, strict=True))
    ordered = measured == sorted(measured) and measured[-1] < len(found.modes) - 1
    return Claim(
        "Modes are learned one after the other, strongest first, at the predicted times",
        ordered and off < 0.03,
        f"half learned at steps {measured}, predicted {predicted}: {off:.1%} off at most",
    )


def the_time_is_inverse_to_the_strength(found: Found) -> Claim:
    """The same, equation 9: t of order 1 / s, up to the logarithm of the start."""
    strengths = np.array(found.settings.strengths)
    times = np.array(halfway(found.modes, found.settings.strengths))
    power = float(np.polyfit(np.log(strengths), np.log(times), 1)[0])
    return Claim(
        "A mode of strength s takes a time proportional to 1 / s",
        -1.2 < power < -0.9,
        f"like s^{power:.2f}",
    )


def it_passes_by_every_rank(found: Found) -> Claim:
    """Greedy low-rank learning: Gidel et al. 2019, arXiv 1904.13262; Li et al. 2021, 2012.09839."""
    nearest = found.errors[:, 1:].min(axis=0)
    at = found.errors[:, 1:].argmin(axis=0)
    return Claim(
        "It passes by the best approximations of rank 1, 2, ... in turn: greedy low rank",
        bool(nearest.max() < 0.05 and (np.diff(at) > 0).all()),
        "nearest relative distances "
        + ", ".join(f"{d:.3f}" for d in nearest)
        + f" at steps {at.tolist()}",
    )


# --- the figure ---


def draw(found: Found) -> Figure:
    """Strengths against time with the prediction, and the distance to each rank."""
    figure, (strength, rank) = page(2)
    steps = np.arange(len(found.modes))
    colours = shades(len(found.settings.strengths))
    panel(
        strength, "Modes, one after the other",
        "Lines: trained from a small random start; dots: the prediction of Saxe et al.",
        xlabel="step", ylabel="strength of the mode",
    )  # fmt: skip
    lines = []
    for k, (s, colour) in enumerate(zip(found.settings.strengths, colours, strict=True)):
        lines.append(curve(strength, f"s = {s:g}", colour, steps, found.modes[:, k]))
        some = steps[:: len(steps) // 60]
        strength.plot(some, found.predicted[some, k], ".", markersize=5, color=colour)
    label(strength, lines)
    panel(
        rank, "The best approximations of each rank, in turn",
        "Distance of the product from the target cut to rank k, over the target's norm",
        yscale="log", xlabel="step", ylabel="distance", ylim=(3e-3, 1.5),
    )  # fmt: skip
    lines = [
        curve(rank, f"rank {k}", colour, steps, found.errors[:, k], ls="-" if k else ":")
        for k, colour in enumerate((GREY, *colours))
    ]
    label(rank, lines)
    return figure


SECTION = Section(
    name="deep_linear",
    question="In which order does a deep linear network learn?",
    settings=Settings(),
    quick=Settings(),
    run=run,
    claims=(
        modes_are_learned_at_the_predicted_times,
        the_time_is_inverse_to_the_strength,
        it_passes_by_every_rank,
    ),
    draw=draw,
)
