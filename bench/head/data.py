"""The windows of a text, and the hidden states of a frozen model over them, some at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lm.corpus import Corpus, windows
from torch import Tensor
from torch.nn import functional as F

from .settings import Settings

Hidden = Callable[[Tensor], Tensor]  # tokens [batch, context] int64 to [batch, context, width]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Windows:
    """Inputs and the tokens that follow each, int32, [count, context]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def tokens(self) -> int:
        return self.inputs.numel()

    def rows(self, which: Tensor) -> "Windows":
        return Windows(self.inputs[which], self.targets[which])

    def spread(self, count: int) -> "Windows":
        """At most `count` of them, evenly over the text."""
        return self.rows(torch.linspace(0, len(self) - 1, min(count, len(self))).long())

    def long(self) -> Pair:
        return self.inputs.long(), self.targets.long()

    def chunks(self, size: int) -> Iterator["Windows"]:
        pairs = zip(self.inputs.split(size), self.targets.split(size), strict=True)
        return (Windows(*pair) for pair in pairs)

    @torch.no_grad()
    def hidden(self, model: Hidden) -> Pair:
        """Hidden states [N, width] and the tokens [N] they are to predict."""
        inputs, targets = self.long()
        return model(inputs).flatten(0, 1), targets.flatten()


@dataclass(frozen=True)
class Data:
    """The text in windows: `training` for AdamW and Newton, `corpus`, maybe less, for the sums."""

    training: Windows
    corpus: Windows
    held_out: Windows

    @classmethod
    def of(cls, corpus: Corpus, settings: Settings) -> "Data":
        """Raises InputError where a part of the text is too short for a window."""
        training = Windows(*windows(corpus.training, settings.context, "training"))
        held_out = Windows(*windows(corpus.validation, settings.context, "validation"))
        some = training
        if settings.tokens is not None:
            some = training.spread(max(1, settings.tokens // settings.context))
        return cls(training, some, held_out.spread(settings.held_out))


@torch.no_grad()
def evaluate(part: Windows, model: Hidden, head: Tensor, chunk: int) -> float:
    """The mean cross-entropy in nats, with the logits of `chunk` windows at a time."""
    total = 0.0
    for some in part.chunks(chunk):
        hidden, targets = some.hidden(model)
        total += F.cross_entropy(F.linear(hidden, head), targets, reduction="sum").item()
    return total / part.tokens
