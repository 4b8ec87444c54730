"""The softmax regression that the Newton family solves: its chunks, its loss, its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fusedstep.lm_head.batch import gram
from fusedstep.lm_head.softmax import directions_, rows_for_logits, token_losses

CHUNK_ELEMENTS = 1 << 23  # logits at a time: 32 MiB of float32


@dataclass(frozen=True)
class Problem:
    """Predict the tokens from the hidden vectors; logits are `hidden @ weight.T`."""

    function: str  # whose it is, for refusals
    weight: Tensor  # [V, d] float32 or float64; a copy, which a method may write
    hidden: Tensor  # [N, d] of any floating-point dtype
    tokens: Tensor  # [N] int64
    loss_constant: float
    steps: int
    chunk_size: int  # tokens at a time

    def chunks(self, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Hidden `[n, d]`, tokens `[n]`, logits `[n, V]`; the next logits overwrite these."""
        buffer = rows_for_logits(min(self.chunk_size, len(self.tokens)), weight)
        for hidden, tokens in self.parts(self.chunk_size):
            logits = torch.mm(hidden, weight.mT, out=buffer[: len(tokens)])
            yield hidden, tokens, logits

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Hidden `[n, d]` of weight's dtype and tokens `[n]`, `size` of them at a time."""
        pairs = zip(self.hidden.split(size), self.tokens.split(size), strict=True)
        return ((hidden.to(self.weight.dtype), tokens) for hidden, tokens in pairs)

    def loss(self, weight: Tensor) -> Tensor:
        """The mean cross-entropy, 0-d float64."""
        total = torch.zeros((), dtype=torch.float64, device=weight.device)
        for _, tokens, logits in self.chunks(weight):
            total += token_losses(logits, tokens).sum()
        return total / len(self.tokens)

    def gradient(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy, to the bit that of `loss`, and its gradient `[V, d]`."""
        total = torch.zeros((), dtype=torch.float64, device=weight.device)
        gradient = torch.zeros_like(weight)
        for hidden, tokens, logits in self.chunks(weight):
            rows = directions_(logits, tokens)
            total += rows.loss.sum()
            add_outer_(gradient, logits, rows.miss / len(self.tokens), hidden)
        return total / len(self.tokens), gradient

    def second_moment(self) -> Tensor:
        """hiddenᵀ hidden / N, `[d, d]`, float64."""
        return gram(self.function, self.hidden) / len(self.tokens)


def add_outer_(weight: Tensor, directions: Tensor, scale: Tensor, hidden: Tensor) -> None:
    """weight += sum over n of scale[n] * directions[n] hidden[n]ᵀ, by one product."""
    weight.addmm_(directions.mT, scale.to(hidden.dtype)[:, None] * hidden)


def square_norms(hidden: Tensor) -> Tensor:
    """The squared norms of the hidden vectors, `[n]` float64."""
    return hidden.to(torch.float64).square().sum(1)
