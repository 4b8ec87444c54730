"""Least squares of one-hot targets as a notebook has it: with the N x V array, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def targets(tokens: Tensor, vocab_size: int, scale: float = 1.0) -> Tensor:
    """`scale` where the column is the token, else 0: [N, V], float64."""
    return scale * torch.nn.functional.one_hot(tokens, vocab_size).to(torch.float64)


def least_squares(
    hidden: Tensor, tokens: Tensor, vocab_size: int, scale: float = 1.0, ridge: float = 0.0
) -> Tensor:
    """argmin |hidden Wᵀ - targets|² + ridge |W|², of smallest norm where there are several.

    By the SVD of `hidden` [N, d] with rows of sqrt(ridge) I below, which no Gram matrix squares.
    """
    wanted = targets(tokens, vocab_size, scale)
    below = ridge**0.5 * torch.eye(hidden.shape[1], dtype=torch.float64)
    A = torch.cat([hidden.to(torch.float64), below])
    B = torch.cat([wanted, wanted.new_zeros(len(below), vocab_size)])
    return torch.linalg.lstsq(A, B, driver="gelsd").solution.T


def mse(weight: Tensor, hidden: Tensor, tokens: Tensor, scale: float = 1.0) -> Tensor:
    """The mean squared error over all N V entries."""
    logits = hidden.to(torch.float64) @ weight.to(torch.float64).T
    return (logits - targets(tokens, len(weight), scale)).square().mean()
