"""The cross-entropy of rows of logits and its gradient, in a form that loses no small number.

With p = softmax(z) and the token y, the gradient of the loss is p - e_y. Where p_y is near 1 all of
it is small, and 1 - p_y cancels. Hence two factors: p - e_y = miss * direction, where
miss = 1 - p_y, and direction is the softmax over all classes but y, with -1 in the place of y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import threshold_


class Rows(NamedTuple):
    """Numbers of each row of logits, `[n]` float64; |p - e_y|² is miss² * square."""

    loss: Tensor  # -log p_y
    miss: Tensor  # 1 - p_y
    square: Tensor  # |direction|², between 1 and 2


def losses_(logits: Tensor, tokens: Tensor) -> Tensor:
    """The loss of each row, `[n]` float64; `logits` `[n, V]` is written over."""
    return _exponentials_(logits, tokens)[0]


def directions_(logits: Tensor, tokens: Tensor) -> Rows:
    """Writes the directions over `logits` `[n, V]`, float32 or float64; tokens `[n]` in [0, V)."""
    loss, miss, rest = _exponentials_(logits, tokens)
    logits.div_(rest.clamp(min=torch.finfo(rest.dtype).tiny)[:, None])
    square = 1 + torch.linalg.vector_norm(logits, dim=1).to(torch.float64).square()
    logits.scatter_(1, tokens[:, None], -1.0)
    return Rows(loss, miss, square)


def _exponentials_(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves exp(z - max z), but 0 for the token; the loss, 1 - p_y, and the sum of what is left.

    The loss keeps its digits where it is below the rounding errors of max z: then hit is 1.
    """
    index = tokens[:, None]
    top = logits.amax(1, keepdim=True)
    behind = (top - logits.gather(1, index)).squeeze(1)
    # Numbers below the normal ones count as 0: exp is a hundred times slower for them.
    tiny = torch.finfo(logits.dtype).tiny
    threshold_(logits.sub_(top).clamp_(min=math.log(tiny) + 1).exp_(), 3 * tiny, 0.0)
    hit = logits.gather(1, index).squeeze(1).to(torch.float64)
    rest = logits.scatter_(1, index, 0.0).sum(1)
    wide = rest.to(torch.float64)
    loss = torch.log1p(wide + (hit - 1)) + behind
    return loss, wide / (wide + hit), rest
