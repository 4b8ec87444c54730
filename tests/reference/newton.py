"""The Newton family as its literal loops: one backward and one pseudo-inverse a token, float64.

For tests alone. Of weight `[V, d]`, hidden `[N, d]`, tokens `[N]` everything is made that the
methods avoid: one-hot tokens, Jacobians, Hessian matrices of V d rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def token_losses(weight: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    """The cross-entropy of each token, `[N]`."""
    logits = hidden @ weight.mT
    target = one_hot(tokens, len(weight)).to(logits.dtype)
    return logits.logsumexp(1) - (logits * target).sum(1)


def mean_loss(weight: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    return token_losses(weight, hidden, tokens).mean()


def full(weight: Tensor, hidden: Tensor, tokens: Tensor, constant: float) -> Tensor:
    """One step for the mean loss."""
    weight = weight.clone().requires_grad_()
    loss = mean_loss(weight, hidden, tokens)
    loss.backward()
    term = torch.pinverse(weight.grad) * (loss - constant).detach()
    return weight.detach() - term.T


def components(weight: Tensor, hidden: Tensor, tokens: Tensor, constant: float) -> Tensor:
    """One step for every token, all from the same weights."""
    weight = weight.clone().requires_grad_()
    losses = token_losses(weight, hidden, tokens)
    terms = []
    for loss in losses:
        loss.backward(retain_graph=True)
        terms.append(torch.linalg.pinv(weight.grad) * (loss - constant).detach())
        weight.grad = None
    return weight.detach() - sum(terms).T


def components_recalculated(
    weight: Tensor, hidden: Tensor, tokens: Tensor, constant: float
) -> Tensor:
    """One step for every token, each from the weights that the last one left."""
    weight = weight.clone().requires_grad_()
    for n in range(len(tokens)):
        loss = token_losses(weight, hidden, tokens)[n] - constant
        loss.backward()
        term = torch.linalg.pinv(weight.grad) * loss.detach()
        with torch.no_grad():
            weight -= term.T
        weight.grad = None
    return weight.detach()


def jacobian(weight: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Of the token losses, `[N, V d]`."""
    rows = torch.func.jacrev(token_losses)(weight, hidden, tokens)
    return rows.reshape(len(tokens), -1)


def joint(weight: Tensor, hidden: Tensor, tokens: Tensor, constant: float) -> Tensor:
    """One step for all N equations at once: the shortest that solves their linear model best."""
    rows = jacobian(weight, hidden, tokens)
    losses = token_losses(weight, hidden, tokens) - constant
    return weight - (torch.linalg.pinv(rows, rtol=1e-7) @ losses).reshape(weight.shape)


def gradient(weight: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Of the mean loss, `[V, d]`."""
    return torch.func.grad(mean_loss)(weight, hidden, tokens)


def hessian(weight: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Of the mean loss, `[V, d, V, d]`."""
    return torch.func.hessian(mean_loss)(weight, hidden, tokens)


def bohning(weight: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    """One step with the pseudo-inverse of Böhning's bound on the Hessian, `[V d, V d]`."""
    size = len(weight)
    centre = torch.eye(size, dtype=weight.dtype) - 1 / size
    bound = torch.kron(0.5 * centre, hidden.mT @ hidden / len(hidden))
    slope = gradient(weight, hidden, tokens).flatten()
    return weight - (torch.linalg.pinv(bound) @ slope).reshape(weight.shape)


def block_diagonal(
    weight: Tensor, hidden: Tensor, tokens: Tensor, damping: float, length: float
) -> Tensor:
    """One step with the Hessian's diagonal blocks, one a class, damped."""
    curvature, slope = hessian(weight, hidden, tokens), gradient(weight, hidden, tokens)
    stepped = weight.clone()
    for c in range(len(weight)):
        block = curvature[c, :, c, :]
        scale = block.diagonal().mean() + slope[c].norm() * hidden.square().mean().sqrt()
        damped = block + damping * scale * torch.eye(len(block), dtype=block.dtype)
        stepped[c] -= length * torch.linalg.solve(damped, slope[c])
    return stepped
