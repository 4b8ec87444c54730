"""Trains the language model and takes the gradient's norm at every batch size on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

import fusedstep
from bench.studies.language_model.corpus import Corpus, Sampler, windows
from bench.studies.language_model.model import GPT
from bench.studies.language_model.training import SIZES, Recipe, fused_update
from bench.studies.stages import Stages
from fusedstep.nqm import NoiseScale


@dataclass(frozen=True)
class Settings:
    """The recipe of bench.train_lm with a constant batch, 2^k micro-batches of it."""

    recipe: Recipe
    decay: float  # of the running estimate

    @property
    def sizes(self) -> list[int]:
        """The batch sizes, in sequences, at which a step's gradient is measured."""
        found = [self.recipe.micro_batch]
        while found[-1] < self.recipe.batch:
            found.append(2 * found[-1])
        return found

    @property
    def span(self) -> int:
        """The steps of each end of the run whose plain means are compared: a fifth."""
        return self.recipe.steps // 5


USUAL = Settings(replace(SIZES["small"], steps=200, batch=32, micro_batch=4), decay=0.95)
QUICK = Settings(replace(SIZES["tiny"], steps=100, batch=8, micro_batch=1), decay=0.9)


@dataclass(frozen=True)
class Step:
    """What one step measured, and what the running estimate says after it."""

    loss: float
    norms: list[float]  # at each of the batch sizes
    value: float
    standard_error: float
    signal: float
    noise: float


@dataclass(frozen=True)
class Found:
    """All steps of the run."""

    settings: Settings
    steps: list[Step] = field(default_factory=list)

    @property
    def ends(self) -> tuple[list[Step], list[Step]]:
        """The first and the last steps."""
        span = self.settings.span
        return self.steps[:span], self.steps[-span:]

    def scale(self, steps: list[Step]) -> NoiseScale:
        """The plain mean over some steps."""
        sizes = self.settings.sizes
        scale = NoiseScale(sizes[0], sizes[-1])
        for step in steps:
            scale.update(step.norms[0], step.norms[-1])
        return scale


def measure(corpus: Corpus, settings: Settings, stages: Stages) -> Found:
    """Trains by the recipe."""
    recipe, sizes = settings.recipe, settings.sizes
    texts = windows(corpus.training, recipe.shape.context, "training")
    sampler = Sampler(len(texts), recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = GPT(recipe.shape)
    optimizer, update = fused_update(model)
    params, parts = list(model.parameters()), recipe.batch // recipe.micro_batch
    scale = NoiseScale(sizes[0], sizes[-1], decay=settings.decay)
    found = Found(settings)
    with stages.stage("Training", recipe.steps) as stage:
        for step in range(recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            batch = texts.rows(sampler.take(recipe.batch))
            loss, norms = 0.0, []
            for done, part in enumerate(batch.chunks(recipe.micro_batch), start=1):
                part_loss = model(*part.long()) / parts
                part_loss.backward()
                loss += part_loss.item()
                if done < parts and done * recipe.micro_batch in sizes:
                    # The sum of `done` of `parts` shares: their mean is parts / done times that.
                    norm = fusedstep.get_total_norm([p.grad for p in params if p.grad is not None])
                    norms.append(parts / done * norm.item())
            norms.append(update().item())
            optimizer.zero_grad()
            scale.update(norms[0], norms[-1])
            found.steps.append(
                Step(loss, norms, scale.value, scale.standard_error, scale.signal, scale.noise)
            )
            stage.step(f"loss {loss:.2f}, noise scale {scale.value:.1f}")
    return found
