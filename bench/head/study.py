"""The study of the linear mixer from text to figures, stage by stage."""

import math

import torch
from torch import Tensor

from . import adamw, newton, normal, streaming
from .data import Data, Windows
from .mixer import fresh_head, make_mixer
from .progress import Stages
from .settings import Settings

SEVERAL = 16  # sequences that the formula of the textbook is tried on, beside a single one


def study(data: Data, settings: Settings, stages: Stages) -> dict:
    """All that was found; losses in nats but for those called mse, times in seconds."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + 1)
        fresh = fresh_head(settings)
    solving = sum(streaming.steps_of(part, settings) for part in (data.corpus, data.held_out))

    mixer = make_mixer(settings)
    with stages.stage("Least squares, mixer as initialised", solving) as stage:
        untrained = streaming.fit(data, mixer.hidden, fresh, settings, stage)
    with stages.stage("AdamW on the whole mixer", settings.steps) as stage:
        whole = adamw.train_mixer(mixer, data, settings, stage)
    mixer.requires_grad_(False)

    with stages.stage("Closed forms on a few sequences", 2) as stage:
        formulas = []
        for count in (1, min(SEVERAL, len(data.training))):
            part = data.training.rows(torch.arange(count))
            formulas.append(normal.compare(part, mixer.hidden, fresh, settings))
            stage.step()
    with stages.stage("Least squares, mixer trained", solving) as stage:
        solved = streaming.fit(data, mixer.hidden, fresh, settings, stage)
    with stages.stage("AdamW on a fresh last layer", settings.steps) as stage:
        head = adamw.train_head(mixer.hidden, fresh, data, settings, stage)

    count = max(1, settings.newton_tokens // settings.context)
    some = torch.randperm(len(data.training), generator=generator)[:count]
    batch = data.training.rows(some).hidden(mixer.hidden)
    return {
        "trivial_mse": settings.trivial_mse,
        "uniform_loss": math.log(settings.vocabulary),
        "unigram_loss": unigram_loss(data.corpus, data.held_out, settings.vocabulary),
        "formulas": formulas,
        "least_squares_untrained": untrained,
        "least_squares": solved,
        "adamw_head": head,
        "adamw_whole": whole,
        "newton": newton.study(fresh, *batch, settings, stages),
    }


def unigram_loss(training: Windows, held_out: Windows, vocabulary: int) -> float:
    """Of a guess by how often each token occurs in training, one more than that."""
    counted: Tensor = torch.bincount(training.targets.flatten(), minlength=vocabulary) + 1.0
    log_p = (counted / counted.sum()).log()
    return -float(log_p[held_out.targets.flatten().long()].mean())
