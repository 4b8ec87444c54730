"""The problem: settings, text in windows, the linear mixer, and its loss on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.studies.language_model.corpus import Corpus, Windows, windows

SCALE = 1000.0  # of the one-hot targets, as in "Language Mixers III: Optimization"
HORIZONS = (1, 10, 100, 1000)  # AdamW's steps that the table shows
DEVIATION = 0.2  # of the embedding at first
Hidden = Callable[[Tensor], Tensor]  # tokens [batch, context] int64 to [batch, context, width]


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths of time; windows are of `context` tokens each."""

    vocabulary: int = 4096
    context: int = 128
    width: int = 128
    steps: int = 1000  # of AdamW
    batch: int = 8  # windows
    rate: float = 1e-2  # AdamW's, at its peak
    tokens: int | None = None  # of training text in the least squares; None: all
    held_out: int = 64  # windows
    chunk: int = 16  # windows whose hidden states, and logits, are held at a time
    newton_tokens: int = 512  # in whole windows, at least one
    newton_seconds: float = 8.0  # for each variant, begun iterations ended
    newton_iterations: int = 100
    seed: int = 0

    @property
    def trivial_mse(self) -> float:
        """The mean squared error of all weights 0."""
        return SCALE**2 / self.vocabulary


class Mixer(nn.Module):
    """Token embedding, masked convolution over positions, last layer; no nonlinearity.

    The linear language mixer of "Language Mixers III: Optimization": logits are linear in each of
    the three. A convolution with as many channels as positions is a square matrix over them, and
    its mask keeps the diagonal and what is below.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        context, width = settings.context, settings.width
        self.embedding = nn.Parameter(DEVIATION * torch.randn(settings.vocabulary, width))
        bound = 1 / math.sqrt(context)
        self.mixing = nn.Parameter(torch.empty(context, context).uniform_(-bound, bound).tril_())
        self.head = nn.Parameter(fresh_head(settings))

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, context] int64 to [batch, context, width]; n depends on tokens up to n."""
        return self.mixing.tril() @ F.embedding(tokens, self.embedding)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, 0-d; targets are int64, [batch, context] as tokens."""
        return cross_entropy(self.hidden(tokens), self.head, targets)


def fresh_head(settings: Settings) -> Tensor:
    """A last layer [vocabulary, width] as nn.Linear starts with, drawn from torch's generator."""
    bound = 1 / math.sqrt(settings.width)
    return torch.empty(settings.vocabulary, settings.width).uniform_(-bound, bound)


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Of logits hidden @ head.T, the mean over all positions in nats."""
    logits = F.linear(hidden, head)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def make_mixer(settings: Settings) -> Mixer:
    """The mixer of this seed; torch's generator is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Mixer(settings)


@dataclass(frozen=True)
class Data:
    """The text in windows: `training` for AdamW and Newton; `corpus`, maybe less, for the sums."""

    training: Windows
    corpus: Windows
    held_out: Windows

    @classmethod
    def of(cls, corpus: Corpus, settings: Settings) -> Data:
        """Raises InputError where a part of the text is too short for a window."""
        training = windows(corpus.training, settings.context, "training")
        held_out = windows(corpus.validation, settings.context, "validation")
        some = training
        if settings.tokens is not None:
            some = training.spread(max(1, settings.tokens // settings.context))
        return cls(training, some, held_out.spread(settings.held_out))


@torch.no_grad()
def hidden_states(part: Windows, model: Hidden) -> tuple[Tensor, Tensor]:
    """Hidden states [N, width] and the tokens [N] that they are to predict."""
    inputs, targets = part.long()
    return model(inputs).flatten(0, 1), targets.flatten()


@torch.no_grad()
def evaluate(part: Windows, model: Hidden, head: Tensor, chunk: int) -> float:
    """The mean cross-entropy in nats, with the logits of `chunk` windows at a time."""
    total = 0.0
    for some in part.chunks(chunk):
        hidden, targets = hidden_states(some, model)
        total += F.cross_entropy(F.linear(hidden, head), targets, reduction="sum").item()
    return total / part.tokens
