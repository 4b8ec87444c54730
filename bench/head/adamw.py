"""AdamW on the cross-entropy: of the whole mixer, and of a last layer on frozen hidden states."""

import time
from collections.abc import Callable, Sequence

import torch
from lm.recipe import BETAS, MAX_NORM
from lm.sampler import Sampler
from torch import Tensor, nn

import fusedstep
from fusedstep import schedules

from .data import Data, Hidden, evaluate
from .mixer import Mixer, cross_entropy
from .progress import Stage
from .settings import HORIZONS, Settings

WARMUP, FINAL_RATE = 0.02, 0.1  # of the steps; of the peak


def looked_at(steps: int) -> set[int]:
    """After which steps the held-out loss is taken: 1, 2, 5, 10, ... and the last."""
    every = {base * 10**power for base in (1, 2, 5) for power in range(7)}
    return {step for step in every | {steps, *HORIZONS} if step <= steps}


def train_mixer(model: Mixer, data: Data, settings: Settings, stage: Stage) -> list[dict]:
    """Trains all of it, in place; see `_train` for what comes back."""
    parameters = list(model.parameters())
    return _train(
        parameters, model, lambda: (model.hidden, model.head.detach()), data, settings, stage
    )


def train_head(
    hidden: Hidden, fresh: Tensor, data: Data, settings: Settings, stage: Stage
) -> list[dict]:
    """Trains a copy of the fresh head alone, on the hidden states of a model that stays."""
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
) -> list[dict]:
    """Steps, the seconds of training until then, and the held-out loss in nats, before the first
    step and at some after. Both trainings see the same batches at the same learning rates."""
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
        stage.step(f"held-out loss {points[-1]['held_out_loss']:.3f}")
    return points


def _point(
    step: int,
    seconds: float,
    now: Callable[[], tuple[Hidden, Tensor]],
    data: Data,
    settings: Settings,
) -> dict:
    hidden, head = now()
    loss = evaluate(data.held_out, hidden, head, settings.chunk)
    return {"step": step, "seconds": seconds, "held_out_loss": loss}
