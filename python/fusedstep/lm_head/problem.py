"""The softmax regression that the Newton family solves: its chunks, its loss, its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fusedstep.lm_head.batch import gram
from fusedstep.lm_head.softmax import Rows, directions_, losses_

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
        buffer = weight.new_empty(min(self.chunk_size, len(self.tokens)), len(weight))
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
            total += losses_(logits, tokens).sum()
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


def excess(losses: Tensor, loss_constant: float, uphill: bool) -> Tensor:
    """By how much the losses are to fall: where they are below the constant not at all, or up."""
    above = losses - loss_constant
    return above if uphill else above.clamp(min=0)


def root_scale(rows: Rows, squares: Tensor, loss_constant: float, uphill: bool) -> Tensor:
    """What to take of direction[n] hidden[n]ᵀ for Newton's step to the root of loss[n] - constant.

    The gradient of one token, miss * direction hiddenᵀ, has rank 1, so its pseudo-inverse is its
    transpose over its squared norm; that of 0 is 0. `squares`: the hidden vectors' squared norms.
    """
    slope = rows.miss * rows.square * squares
    return torch.where(slope > 0, excess(rows.loss, loss_constant, uphill) / slope, 0.0)
