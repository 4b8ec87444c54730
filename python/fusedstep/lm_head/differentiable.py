"""Least squares of one batch, differentiable in the hidden states without an N x V array."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from fusedstep.checks import refuse, require_count, require_dense, require_number
from fusedstep.lm_head.batch import add_by_token, gram, require_batch
from fusedstep.lm_head.least_squares import CLASS_BLOCK, require_scale
from fusedstep.lm_head.ridge import certain_inverse, default_rtol, inverses, kept, spectrum

BLOCK = 4096  # hidden states converted to float64 at a time


def least_squares(
    hidden: Tensor,
    tokens: Tensor,
    vocab_size: int,
    *,
    scale: float = 1.0,
    ridge: float = 0.0,
    rtol: float | None = None,
) -> Tensor:
    """The weight [V, d] that best maps hidden states to one-hot tokens: one `LeastSquares.solve`.

    Args:
        hidden: [N, d] or [B, T, d], N at least 1; float32, float64, bfloat16 or float16.
        tokens: [N] or [B, T], int64, from 0 to V - 1.
        vocab_size: V.
        scale, ridge, rtol: as in `LeastSquares`; one ridge.

    Returns:
        Of hidden's dtype, computed in float64 and rounded once. Differentiable once in `hidden`, at
        constant rank (G. H. Golub and V. Pereyra 1973, equation 4.12), in blocks of tokens.

    Raises:
        ValueError, TypeError: `least_squares: <argument> must <property>, got <value>`.
    """
    function = "least_squares"
    vocabulary = require_count(function, "vocab_size", vocab_size, 1)
    scale = require_scale(function, scale)
    ridge = require_number(function, "ridge", ridge)
    require_dense(function, "hidden", hidden)
    d = hidden.shape[-1] if hidden.dim() > 0 else 0
    rows, ids = require_batch(function, hidden, tokens, d, vocabulary, hidden.device)
    if rows.numel() == 0:
        refuse(function, "hidden", "have elements", list(hidden.shape))
    rtol = default_rtol(len(ids), d) if rtol is None else require_number(function, "rtol", rtol)
    return _Solve.apply(hidden.reshape(-1, d), ids, vocabulary, scale, ridge, rtol)


class Inverse(NamedTuple):
    """M⁺ for M = G + ridge I; where M is singular, also G⁺ and the basis of what counts as zero."""

    inverse: Tensor
    of_gram: Tensor | None = None
    null: Tensor | None = None

    @classmethod
    def of(cls, gram: Tensor, ridge: float, rtol: float) -> Inverse:
        certain = certain_inverse(gram, ridge, rtol)
        if certain is not None:
            return cls(certain)
        found, shift = spectrum(gram), gram.new_tensor(ridge)
        keep = kept(found, shift, rtol)
        inverted = torch.where(keep & (found.values > 0), 1 / found.values, 0.0)
        of_gram = (found.vectors * inverted) @ found.vectors.mT
        return cls(inverses(found, shift, rtol), of_gram, found.vectors[:, ~keep])


class _Solve(Function):
    """W = s C M⁺ with M = XᵀX + ridge I, C = YᵀX."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tokens: Tensor, vocabulary: int, *numbers: float) -> Tensor:
        scale, ridge, rtol = numbers
        factors = Inverse.of(gram("least_squares", rows), ridge, rtol)
        sums = rows.new_zeros(vocabulary, rows.shape[1], dtype=torch.float64)
        add_by_token(sums, rows, tokens)
        ctx.scale = scale
        ctx.save_for_backward(rows, tokens, sums, *factors)
        weight = rows.new_empty(sums.shape)
        for rounded, exact in zip(weight.split(CLASS_BLOCK), sums.split(CLASS_BLOCK), strict=True):
            rounded.copy_(exact @ (factors.inverse * scale))
        return weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With T = W̄ M⁺: X̄ = s T[y] - X (WᵀT + TᵀW) and, where Π projects on what counts as zero,
        X G⁺ Wᵀ W̄ Π besides. No V x V and no N x V array."""
        rows, tokens, sums, inverse, of_gram, null = ctx.saved_tensors
        grad = grad.to(torch.float64)
        slope = (grad @ inverse).mul_(ctx.scale)
        mixed = inverse @ (sums.mT @ slope)
        right = mixed + mixed.mT
        if null is not None:
            weighed = (inverse * ctx.scale) @ (sums.mT @ (grad @ null))
            right -= of_gram @ weighed @ null.mT
        blocks = zip(rows.split(BLOCK), tokens.split(BLOCK), strict=True)
        parts = [(slope[ids] - x.to(torch.float64) @ right).to(x.dtype) for x, ids in blocks]
        return torch.cat(parts), *[None] * 5
