"""The cross-entropy of rows of logits and its gradient, in a form without cancellation.

With p = softmax(z) and the token y, the gradient of the loss is p - e_y. If p_y is near 1, all of
it is small and 1 - p_y cancels. Hence two factors: p - e_y = miss * direction, where
miss = 1 - p_y, and direction is the softmax over all classes but y, with -1 in the place of y.

Logits are `[n, V]`, float32 or float64, with the elements of a row contiguous in memory; tokens
`[n]` are int64 in [0, V), which is not checked on a GPU. kernels/lm_head/softmax.h defines the
bits, which are the same on every device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep.fakes import register_fake

ALIGNMENT = 64  # bytes


class Rows(NamedTuple):
    """Numbers of each row of logits, `[n]` float64; |p - e_y|² is miss² * square."""

    loss: Tensor  # -log p_y
    miss: Tensor  # 1 - p_y; 0 where that is below the logits' normal numbers
    square: Tensor  # |direction|², between 1 and 2


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """The loss of each row, `[n]` float64."""
    rows: Tensor = torch.ops.fusedstep.softmax_losses(logits, tokens)
    return rows[:, 0]


def directions_(logits: Tensor, tokens: Tensor) -> Rows:
    """Writes the directions over the logits."""
    return Rows(*torch.ops.fusedstep.softmax_directions_(logits, tokens)[:, :3].unbind(1))


def root_steps_(
    logits: Tensor,
    tokens: Tensor,
    squares: Tensor,
    loss_constant: float,
    uphill: bool,
    gram: Tensor | None = None,
) -> Tensor:
    """Writes Newton's steps to the roots of loss - loss_constant over the logits.

    Row n becomes D_n, with which the token's step is W -= D_n x_nᵀ: (loss - constant) direction
    over miss |direction|² |x_n|² (kernels/lm_head/root_step.h). Without `uphill`, 0 if the loss is
    below the constant.

    Args:
        logits: `[n, V]`, as above; overwritten.
        tokens: `[n]`, as above.
        squares: |x_n|², `[n]` float64.
        loss_constant: Loss of the roots.
        uphill: Whether rows whose loss is below the constant step too.
        gram: None: every step is for the given logits. `[n, n]` x_n · x_i in the logits' dtype: one
            row after another, each for the logits after the steps of the rows before it.

    Returns:
        The losses before each row's step, `[n]` float64.
    """
    op = torch.ops.fusedstep.root_steps_
    rows: Tensor = op(logits, tokens, squares, gram, loss_constant, uphill)
    return rows[:, 0]


def rows_for_logits(count: int, weight: Tensor) -> Tensor:
    """A buffer for `[count, V]` logits of `weight` `[V, d]`, with rows aligned to 64 bytes.

    So they are read 16 bytes at a time for any V.
    """
    unit = ALIGNMENT // weight.element_size()
    stride = -(-len(weight) // unit) * unit
    return weight.new_empty(count, stride)[:, : len(weight)]


def logits_of(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden weightᵀ in such rows."""
    return torch.mm(hidden, weight.mT, out=rows_for_logits(len(hidden), weight))


def _rows_of(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape[0], 4, dtype=torch.float64)


for _name in ("softmax_losses", "softmax_directions_", "root_steps_"):
    register_fake(_name)(_rows_of)
