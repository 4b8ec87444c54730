"""Least squares of one batch: the solution, and its gradient in the hidden states."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fusedstep.lm_head.batch import (
    add_by_token,
    certain_inverse,
    gram,
    in_blocks,
    inverses,
    kept,
    spectrum,
)

CLASS_BLOCK = 1024  # rows of the weight computed with in float64 at a time
HIDDEN_BLOCK = 4096  # hidden states converted to float64 at a time


class Inverse(NamedTuple):
    """M⁺ for M = G + ridge I; if M is singular, also G⁺ and a basis of what counts as zero."""

    inverse: Tensor
    of_gram: Tensor | None = None
    null: Tensor | None = None

    @classmethod
    def of(cls, gram: Tensor, ridge: float, rtol: float) -> Inverse:
        """From G."""
        certain = certain_inverse(gram, ridge, rtol)
        if certain is not None:
            return cls(certain)
        found, shift = spectrum(gram), gram.new_tensor(ridge)
        keep = kept(found, shift, rtol)
        inverted = torch.where(keep & (found.values > 0), 1 / found.values, 0.0)
        of_gram = (found.vectors * inverted) @ found.vectors.mT
        return cls(inverses(found, shift, rtol), of_gram, found.vectors[:, ~keep])


class Solve(Function):
    """W = s C M⁺ with M = XᵀX + ridge I, C = YᵀX."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tokens: Tensor, vocabulary: int, *numbers: float) -> Tensor:
        """W `[V, d]`, of X's dtype."""
        scale, ridge, rtol = numbers
        factors = Inverse.of(gram("least_squares", rows), ridge, rtol)
        sums = rows.new_zeros(vocabulary, rows.shape[1], dtype=torch.float64)
        add_by_token(sums, rows, tokens)
        ctx.scale = scale
        ctx.save_for_backward(rows, tokens, sums, *factors)
        weight = rows.new_empty(sums.shape)
        for rounded, exact in in_blocks(CLASS_BLOCK, weight, sums):
            rounded.copy_(exact @ (factors.inverse * scale))
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of X alone, and only once."""
        with torch.no_grad():
            gradient = _gradient(ctx, grad)
        if torch.is_grad_enabled():  # create_graph=True
            gradient = _NotAgain.apply(gradient, ctx.saved_tensors[0], grad)
        return gradient, *[None] * 5


def _gradient(ctx: Any, grad: Tensor) -> Tensor:
    """The gradient in X, with no V x V and no N x V array.

    With T = W̄ M⁺ it is s T[y] - X (WᵀT + TᵀW), plus X G⁺ Wᵀ W̄ Π where Π projects on what counts as
    zero.
    """
    rows, tokens, sums, inverse, of_gram, null = ctx.saved_tensors
    grad = grad.to(torch.float64)
    slope = (grad @ inverse).mul_(ctx.scale)
    mixed = inverse @ (sums.mT @ slope)
    right = mixed + mixed.mT
    if null is not None:
        weighed = (inverse * ctx.scale) @ (sums.mT @ (grad @ null))
        right -= of_gram @ weighed @ null.mT
    blocks = in_blocks(HIDDEN_BLOCK, rows, tokens)
    parts = [(slope[ids] - x.to(torch.float64) @ right).to(x.dtype) for x, ids in blocks]
    return torch.cat(parts)


class _NotAgain(Function):
    """A gradient that says what it depends on, and raises if that is asked for.

    torch's once_differentiable does not say it: a second derivative is 0 there, in silence.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *depends_on: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise NotImplementedError("least_squares: hidden has a first derivative only")
