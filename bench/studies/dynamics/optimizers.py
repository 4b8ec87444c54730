"""Why some optimizers work better: Adam's one rate a block, Muon's steepest descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import fusedstep
from bench.drawing import BLUE, GREEN, GREY, ORANGE, RED, Line, curve, label, page, panel, plain
from bench.studies.claims import Claim
from bench.studies.dynamics.block_adam import Adam, BlockAdam, Momentum, blocks
from bench.studies.dynamics.language import Text, Transformer
from bench.studies.dynamics.section import Section
from bench.studies.stages import Stages


@dataclass(frozen=True)
class Settings:
    """A small transformer on Zipf-distributed tokens, each optimizer over a grid of rates."""

    steps: int = 200
    batch: int = 16
    average: int = 30  # last steps over which a run's loss is averaged
    adam_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    block_rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4, 8e-4)
    sgd_rates: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2)
    lengths: tuple[float, ...] = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)  # of one step


@dataclass(frozen=True)
class Found:
    """Losses of each optimizer's best run and over its rates; what one step of each does."""

    settings: Settings
    floor: float  # the entropy of the text
    curves: dict[str, list[float]]
    rates: dict[str, dict[float, float]]
    blocks: int
    parameters: int
    alignment: dict[str, list[float]]  # <G, D> / (|D| |G|_*) for each hidden matrix
    drops: dict[str, list[float]]  # of the loss in one step, at each spectral length


def run(settings: Settings, stages: Stages) -> Found:
    """Trains with Adam, one rate a block, and SGD; then single steps from a trained state."""
    text = Text()
    makers: dict[str, tuple[tuple[float, ...], Callable]] = {
        "Adam": (settings.adam_rates, Adam),
        "Adam, one rate a block": (settings.block_rates, BlockAdam),
        "SGD with momentum": (settings.sgd_rates, Momentum),
    }
    curves, rates = {}, {}
    for name, (grid, maker) in makers.items():
        runs = {}
        with stages.stage(f"Optimizers: {name}", len(grid)) as stage:
            for lr in grid:
                runs[lr] = _train(text, settings, maker, lr)
                stage.step()
        ends = {lr: float(np.mean(run[-settings.average :])) for lr, run in runs.items()}
        rates[name] = ends
        curves[name] = runs[min(ends, key=ends.__getitem__)]
    model = Transformer(text.vocabulary)
    return Found(
        settings,
        text.entropy,
        curves,
        rates,
        blocks=sum(count for _, count in blocks(model)),
        parameters=sum(p.numel() for p in model.parameters()),
        **_single_steps(text, settings, stages),
    )


def _train(text: Text, settings: Settings, maker: Callable, lr: float) -> list[float]:
    """The losses of a run; infinite from where they are not finite."""
    torch.manual_seed(0)
    model = Transformer(text.vocabulary)
    optimizer = maker(model, lr)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(settings.steps):
        tokens = text.sample(settings.batch, generator)
        loss = model.loss(tokens)
        value = loss.item()
        losses.append(value if math.isfinite(value) else math.inf)
        loss.backward()
        optimizer.step(min(1, (step + 1) / 20) * (1 - step / settings.steps))
    return losses


# --- one step ---


def _single_steps(text: Text, settings: Settings, stages: Stages) -> dict[str, Any]:
    """Directions of SGD, Adam and Muon from one gradient, compared at one spectral norm."""
    torch.manual_seed(0)
    model = Transformer(text.vocabulary)
    optimizer = Adam(model, 4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        model.loss(text.sample(settings.batch, generator)).backward()
        optimizer.step(1.0)
    tokens = text.sample(8 * settings.batch, generator)
    before = model.loss(tokens)
    before.backward()
    matrices = model.matrices()
    gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
    muon = partial(
        fusedstep.Muon, lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False, eps=1e-20
    )
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "Muon": muon,
        "Muon, exact": partial(muon, ns_coefficients=(1.5, -0.5, 0.0), ns_steps=40),
        "SGD": partial(fusedstep.SGD, lr=1.0),
        "Adam (signs)": partial(fusedstep.Adam, lr=1.0, eps=1e-20),
    }
    directions = {name: _direction(gradients, maker) for name, maker in makers.items()}
    alignment: dict[str, list[float]] = {}
    drops: dict[str, list[float]] = {}
    start = [matrix.detach().clone() for matrix in matrices]
    with stages.stage("Optimizers: one step", len(directions)) as stage:
        for name, moves in directions.items():
            alignment[name] = [
                float((g * move).sum() / torch.linalg.matrix_norm(g, "nuc"))
                for g, move in zip(gradients, moves, strict=True)
            ]
            drops[name] = []
            for length in settings.lengths:
                with torch.no_grad():
                    for matrix, at, move in zip(matrices, start, moves, strict=True):
                        matrix.copy_(at - length * move)
                    drops[name].append(before.item() - float(model.loss(tokens)))
            stage.step()
    return {"alignment": alignment, "drops": drops}


def _direction(gradients: list[Tensor], maker: Callable) -> list[Tensor]:
    """What the optimizer's first step subtracts, scaled to the spectral norm 1."""
    copies = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for copy, gradient in zip(copies, gradients, strict=True):
        copy.grad = gradient.clone()
    maker(copies).step()
    return [-copy.detach() / torch.linalg.matrix_norm(copy.detach(), 2) for copy in copies]


# --- claims ---


def one_rate_a_block_is_nearly_adam(found: Found) -> Claim:
    """Zhang et al. 2024, arXiv 2406.16793; Kunstner et al. 2024, arXiv 2402.19449."""
    best = {name: min(ends.values()) - found.floor for name, ends in found.rates.items()}
    adam, block, sgd = best.values()
    share = (sgd - block) / max(sgd - adam, 1e-12)
    return Claim(
        "Adam is nearly as good with one rate a block; SGD, with one rate for all, is not",
        sgd > 1.1 * adam and share > 0.75,
        f"loss above the text's entropy: Adam {adam:.3f} ({found.parameters:,} rates), "
        f"{found.blocks:,} blocks {block:.3f}, SGD {sgd:.3f}: blocks gain {share:.0%} of what Adam "
        "gains",
    )


def muon_is_steepest_in_the_spectral_norm(found: Found) -> Claim:
    """Bernstein and Newhouse 2024, arXiv 2409.20325, section 2.3: <G, D> <= |D| |G|_*."""
    mean = {name: float(np.mean(values)) for name, values in found.alignment.items()}
    least = min(found.alignment["Muon, exact"])
    return Claim(
        "Muon's step is the steepest descent of its spectral norm: <G, D> = |D| |G|_*",
        least > 0.97 and mean["Muon"] > 1.1 * max(mean["SGD"], mean["Adam (signs)"]),
        f"<G, D> / (|D| |G|_*) is at least {least:.3f} with converged iterations; in the mean "
        f"{mean['Muon']:.2f} with Muon's five, {mean['SGD']:.2f} for SGD, "
        f"{mean['Adam (signs)']:.2f} for Adam's first step",
    )


def at_equal_spectral_norm_it_descends_most(found: Found) -> Claim:
    """The same, measured: the loss after one step."""
    first = {name: drops[0] for name, drops in found.drops.items()}
    best = {name: max(drops) for name, drops in found.drops.items()}
    others = ("SGD", "Adam (signs)")
    return Claim(
        "At equal spectral norm one step of Muon lowers the loss more than SGD's or Adam's",
        all(first["Muon"] > 1.1 * first[name] and best["Muon"] > best[name] for name in others),
        f"at {found.settings.lengths[0]:g}: "
        + ", ".join(f"{name} {drop:.4f}" for name, drop in first.items()),
    )


# --- the figure ---


def draw(found: Found) -> Figure:
    """Training curves, the loss against the rate, and one step's descent."""
    colours = dict(zip(found.curves, (BLUE, GREEN, RED), strict=True))
    figure, (losses, rate, step) = page(3)
    panel(
        losses, "Adam needs one rate a block, not one a weight",
        f"A small transformer: {found.parameters:,} weights in {found.blocks:,} blocks, best rates",
        xlabel="step", ylabel="cross-entropy, nats",
    )  # fmt: skip
    lines = []
    for name, path in found.curves.items():
        smooth = np.convolve(path, np.ones(10) / 10, "valid")
        lines.append(curve(losses, name, colours[name], np.arange(len(smooth)) + 9, smooth))
    losses.axhline(found.floor, color=GREY, lw=1, ls=":")
    lines.append(Line("entropy of the text", GREY, lines[-1].x, found.floor))
    label(losses, lines)
    panel(
        rate, "At every rate", "The last steps' loss; rates over the grid's middle",
        xscale="log", xlabel="rate / middle rate", ylabel="loss above the entropy",
    )  # fmt: skip
    lines = []
    for name, ends in found.rates.items():
        middle = sorted(ends)[len(ends) // 2]
        x = np.array(list(ends)) / middle
        y = np.array(list(ends.values())) - found.floor
        lines.append(curve(rate, name, colours[name], x, y, marker="o", markersize=4))
    plain(rate.xaxis)
    label(rate, lines)
    panel(
        step, "One step: steepest in the spectral norm",
        "All hidden matrices, equal spectral norms",
        xscale="log", xlabel="spectral norm of the step", ylabel="the loss falls by",
    )  # fmt: skip
    lines = []
    for (name, drops), colour in zip(found.drops.items(), (ORANGE, GREY, RED, BLUE), strict=True):
        lengths, style = found.settings.lengths, ":" if name == "Muon, exact" else "-"
        lines.append(curve(step, name, colour, lengths, drops, ls=style, marker="o", markersize=4))
    top = max(max(drops) for drops in found.drops.values())
    step.set_ylim(-0.2 * top, 1.1 * top)
    label(step, lines)
    return figure


SECTION = Section(
    name="optimizers",
    question="Why do some optimizers work better?",
    settings=Settings(),
    quick=Settings(adam_rates=(4e-3,), block_rates=(4e-4,), sgd_rates=(0.05, 0.1)),
    run=run,
    claims=(
        one_rate_a_block_is_nearly_adam,
        muon_is_steepest_in_the_spectral_norm,
        at_equal_spectral_norm_it_descends_most,
    ),
    draw=draw,
)
