"""The study of the linear mixer, stage by stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.studies.language_model.corpus import Windows
from bench.studies.last_layer import adamw, closed_form, newton
from bench.studies.last_layer.adamw import Point
from bench.studies.last_layer.closed_form import Fit, Formulas
from bench.studies.last_layer.newton import Newton
from bench.studies.last_layer.problem import (
    Data,
    Settings,
    fresh_head,
    hidden_states,
    make_mixer,
)
from bench.studies.stages import Stages

SEVERAL = 16  # sequences that the textbook's formula is tried on, after a single one


@dataclass(frozen=True)
class Found:
    """All that was found; losses in nats but for those called mse, times in seconds."""

    trivial_mse: float
    uniform_loss: float
    unigram_loss: float
    formulas: list[Formulas]
    least_squares_untrained: Fit
    least_squares: Fit
    adamw_head: list[Point]
    adamw_whole: list[Point]
    newton: Newton


def study(data: Data, settings: Settings, stages: Stages) -> Found:
    """Runs every stage, from text to figures."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + 1)
        fresh = fresh_head(settings)
    solving = sum(closed_form.steps_of(part, settings) for part in (data.corpus, data.held_out))

    mixer = make_mixer(settings)
    with stages.stage("Least squares, mixer as initialised", solving) as stage:
        untrained = closed_form.fit(data, mixer.hidden, fresh, settings, stage)
    with stages.stage("AdamW on the whole mixer", settings.steps) as stage:
        whole = adamw.train_mixer(mixer, data, settings, stage)
    mixer.requires_grad_(False)

    with stages.stage("Closed forms on a few sequences", 2) as stage:
        formulas = []
        for count in (1, min(SEVERAL, len(data.training))):
            part = data.training.rows(torch.arange(count))
            formulas.append(closed_form.compare(part, mixer.hidden, fresh, settings))
            stage.step()
    with stages.stage("Least squares, mixer trained", solving) as stage:
        solved = closed_form.fit(data, mixer.hidden, fresh, settings, stage)
    with stages.stage("AdamW on a fresh last layer", settings.steps) as stage:
        head = adamw.train_head(mixer.hidden, fresh, data, settings, stage)

    count = max(1, settings.newton_tokens // settings.context)
    some = torch.randperm(len(data.training), generator=generator)[:count]
    batch = hidden_states(data.training.rows(some), mixer.hidden)
    return Found(
        trivial_mse=settings.trivial_mse,
        uniform_loss=math.log(settings.vocabulary),
        unigram_loss=unigram_loss(data.corpus, data.held_out, settings.vocabulary),
        formulas=formulas,
        least_squares_untrained=untrained,
        least_squares=solved,
        adamw_head=head,
        adamw_whole=whole,
        newton=newton.study(fresh, *batch, settings, stages),
    )


def unigram_loss(training: Windows, held_out: Windows, vocabulary: int) -> float:
    """Of a guess by the tokens' frequencies in training, each count plus one."""
    counted: Tensor = torch.bincount(training.targets.flatten(), minlength=vocabulary) + 1.0
    log_p = (counted / counted.sum()).log()
    return -float(log_p[held_out.targets.flatten().long()].mean())
