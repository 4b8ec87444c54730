"""The linear language mixer: token embedding, masked convolution over positions, last layer.

As in "Language Mixers III: Optimization": there is no nonlinearity, so that the logits are linear
in each of the three. A convolution with as many channels as positions is a square matrix over them,
and its mask leaves the diagonal and what is below.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .settings import Settings

DEVIATION = 0.2  # of the embedding at first


class Mixer(nn.Module):
    """Tokens [batch, context] of int64 to logits of the next one at each position."""

    def __init__(self, settings: Settings):
        super().__init__()
        context, width = settings.context, settings.width
        self.embedding = nn.Parameter(DEVIATION * torch.randn(settings.vocabulary, width))
        bound = 1 / math.sqrt(context)
        self.mixing = nn.Parameter(torch.empty(context, context).uniform_(-bound, bound).tril_())
        self.head = nn.Parameter(fresh_head(settings))

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the last layer reads, [batch, context, width]: at n of the tokens up to n alone."""
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
    """The mixer of this seed, which leaves torch's generator as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Mixer(settings)
