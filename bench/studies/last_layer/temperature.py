"""The factor by which logits are multiplied: Newton's method on the cross-entropy.

A least-squares fit gives about `scale` times the probabilities of the next token. They are no
logits until a temperature is fitted. The cross-entropy is convex in its inverse t: with
p = softmax(t z) its derivatives are the means of E_p[z] - z_y and Var_p[z].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.studies.language_model.corpus import Windows
from bench.studies.last_layer.problem import Hidden, hidden_states

ENOUGH = 1e-7  # of t: where a step is smaller, it ends
MOST = 60  # steps; bisection alone would halve the bracket as often


@dataclass(frozen=True)
class Fitted:
    """t, the mean cross-entropy with it in nats, and how many passes over the tokens it took."""

    factor: float
    loss: float
    passes: int


def fit(part: Windows, model: Hidden, head: Tensor, chunk: int) -> Fitted:
    """The t of least cross-entropy of t * hidden @ head.T, found by steps inside a bracket.

    At most the logits of `chunk` windows are in memory. If the logits tell nothing about the
    tokens, t is 0.
    """
    factor, low, high = 0.0, 0.0, float("inf")
    passes = 0
    while passes < MOST:
        passes += 1
        loss, slope, curvature = _derivatives(part, model, head, chunk, factor)
        if slope < 0:
            low = factor
        else:
            high = factor
        if curvature <= 0 or high == 0:
            break
        wanted = factor - slope / curvature
        if not low <= wanted <= high:
            wanted = (low + high) / 2 if high < float("inf") else 2 * low
        if abs(wanted - factor) <= ENOUGH * abs(wanted):
            break
        factor = wanted
    return Fitted(factor, loss, passes)


@torch.no_grad()
def _derivatives(
    part: Windows, model: Hidden, head: Tensor, chunk: int, factor: float
) -> tuple[float, float, float]:
    """The mean cross-entropy at t = factor, and its two derivatives in t."""
    totals = torch.zeros(3, dtype=torch.float64)
    for some in part.chunks(chunk):
        hidden, targets = hidden_states(some, model)
        z = F.linear(hidden, head)
        hit = z.gather(1, targets[:, None]).squeeze(1)
        log_p = F.log_softmax(factor * z, 1)
        loss = -log_p.gather(1, targets[:, None]).squeeze(1)
        p = log_p.exp_()
        mean = (p * z).sum(1)
        variance = (p * (z - mean[:, None]).square_()).sum(1)
        totals += torch.stack([rows.double().sum() for rows in (loss, mean - hit, variance)])
    mean_loss, slope, curvature = (totals / part.tokens).tolist()
    return mean_loss, slope, curvature
