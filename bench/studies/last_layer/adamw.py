"""AdamW on the cross-entropy: of the whole mixer, or of a last layer on frozen hidden states."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fusedstep
from bench.studies.language_model.corpus import Sampler
from bench.studies.language_model.training import BETAS, MAX_NORM
from bench.studies.last_layer.problem import (
    HORIZONS,
    Data,
    Hidden,
    Mixer,
    Settings,
    cross_entropy,
    evaluate,
)
from bench.studies.stages import Stage
from fusedstep import schedules

WARMUP, FINAL_RATE = 0.02, 0.1  # of the steps; of the peak


@dataclass(frozen=True)
class Point:
    """After so many steps: the seconds of training until then, and the held-out loss in nats."""

    step: int
    seconds: float
    held_out_loss: float


def looked_at(steps: int) -> set[int]:
    """After which steps the held-out loss is taken: 1, 2, 5, 10, ... and the last."""
    every = {base * 10**power for base in (1, 2, 5) for power in range(7)}
    return {step for step in every | {steps, *HORIZONS} if step <= steps}


def train_mixer(model: Mixer, data: Data, settings: Settings, stage: Stage) -> list[Point]:
    """Trains all of it, in place."""
    parameters = list(model.parameters())
    return _train(
        parameters, model, lambda: (model.hidden, model.head.detach()), data, settings, stage
    )


def train_head(
    hidden: Hidden, fresh: Tensor, data: Data, settings: Settings, stage: Stage
) -> list[Point]:
    """Trains a copy of the fresh head alone, on the hidden states of a frozen model."""
    head = nn.Parameter(fresh.clone())

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            x = hidden(tokens)
        return cross_entropy(x, head, targets)

    return _train([head], loss, lambda: (hidden, head.detach()), data, settings, stage)


def _train(
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    now: Callable[[], tuple[Hidden, Tensor]],
    data: Data,
    settings: Settings,
    stage: Stage,
) -> list[Point]:
    """Points before the first step and after some. `now`: the hidden states and the head to judge.

    Both trainings see the same batches at the same learning rates.
    """
    optimizer = fusedstep.AdamW(parameters, betas=BETAS, weight_decay=0.0, max_norm=MAX_NORM)
    sampler = Sampler(len(data.training), settings.seed)
    marks, seconds = looked_at(settings.steps), 0.0
    points = [_point(0, seconds, now, data, settings)]
    for step in range(1, settings.steps + 1):
        start = time.perf_counter()
        rate = schedules.warmup_cosine(
            step - 1,
            max_lr=settings.rate,
            min_lr=FINAL_RATE * settings.rate,
            warmup_steps=max(1, round(WARMUP * settings.steps)),
            max_steps=settings.steps,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(*data.training.rows(sampler.take(settings.batch)).long())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - start
        if step in marks:
            points.append(_point(step, seconds, now, data, settings))
        stage.step(f"held-out loss {points[-1].held_out_loss:.3f}")
    return points


def _point(
    step: int,
    seconds: float,
    now: Callable[[], tuple[Hidden, Tensor]],
    data: Data,
    settings: Settings,
) -> Point:
    hidden, head = now()
    loss = evaluate(data.held_out, hidden, head, settings.chunk)
    return Point(step, seconds, loss)
