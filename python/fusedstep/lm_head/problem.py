"""The softmax regression behind the Newton family and the temperature: its checks, chunks, loss.

Logits are `hidden @ weight.T`. They are computed for some tokens at a time, never for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_count, require_dense
from fusedstep.lm_head.batch import gram, in_blocks, require_batch
from fusedstep.lm_head.softmax import directions_, rows_for_logits, token_losses

CHUNK_ELEMENTS = 1 << 23  # logits at a time: 32 MiB of float32


class NewtonResult(NamedTuple):
    """The last layer after some steps, and the loss along the way.

    Attributes:
        weight: [V, d], a new tensor: float64 if the given weight is, else float32.
        losses: [steps + 1], float64: the mean cross-entropy in nats before the first step and after
            each.
    """

    weight: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Problem:
    """Tokens to be predicted from hidden vectors, checked."""

    function: str  # whose arguments these are, for refusals
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
        for hidden, tokens in in_blocks(size, self.hidden, self.tokens):
            # A product's rounding depends on its operands' strides.
            yield hidden.to(self.weight.dtype).contiguous(), tokens

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


def make_problem(
    function: str,
    weight: Any,
    hidden: Any,
    tokens: Any,
    loss_constant: Any = 0.0,
    steps: Any = 0,
    chunk_size: Any = None,
    position_major: bool = False,
) -> Problem:
    """Checks all arguments before anything is computed.

    `position_major`: all first positions of `[B, T]` come first, then all second ones.
    """
    require_dense(function, "weight", weight)
    if weight.dim() != 2 or weight.numel() == 0:
        refuse(function, "weight", "have the shape [V, d], both at least 1", tuple(weight.shape))
    size, width = weight.shape
    rows, labels = require_batch(function, hidden, tokens, width, size, weight.device)
    if len(labels) == 0:
        refuse(function, "tokens", "have at least one element", tuple(tokens.shape))
    for argument, tensor in {"weight": weight, "hidden": hidden}.items():
        if not bool(torch.stack(tensor.aminmax()).isfinite().all()):  # NaN is its own extreme
            at = tuple((~tensor.isfinite()).nonzero()[0].tolist())
            refuse(function, f"{argument}{list(at)}", "be finite", tensor[at].item())
    if isinstance(loss_constant, bool) or not isinstance(loss_constant, Real):
        refuse(function, "loss_constant", "be a number", type(loss_constant).__name__, TypeError)
    if not math.isfinite(loss_constant):
        refuse(function, "loss_constant", "be finite", loss_constant)
    require_count(function, "steps", steps, 0)
    if chunk_size is None:
        chunk_size = max(1, CHUNK_ELEMENTS // size)
    require_count(function, "chunk_size", chunk_size, 1)
    if position_major and hidden.dim() == 3:
        order = torch.arange(len(labels), device=labels.device).view(hidden.shape[:2]).T.flatten()
        rows, labels = rows[order], labels[order]
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    weight = weight.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    return Problem(function, weight, rows, labels, float(loss_constant), steps, chunk_size)


def add_outer_(weight: Tensor, directions: Tensor, scale: Tensor, hidden: Tensor) -> None:
    """weight += sum over n of scale[n] * directions[n] hidden[n]ᵀ, by one product."""
    weight.addmm_(directions.mT, scale.to(hidden.dtype)[:, None] * hidden)


def square_norms(hidden: Tensor) -> Tensor:
    """The squared norms of the hidden vectors, `[n]` float64."""
    return hidden.to(torch.float64).square().sum(1)
