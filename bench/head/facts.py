"""Numbers of one batch and one last layer that say why a Newton step does what it does."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import fusedstep


@torch.no_grad()
def facts_of(weight: Tensor, hidden: Tensor, tokens: Tensor) -> dict:
    """All of them in float64, from the N x V array of a small batch.

    gradient_rank: of the mean loss's gradient. kernel_rank and kernel_top: of the N x N matrix of
    inner products of the tokens' gradients, each divided by its norm, its rank and its largest
    eigenvalue. bound_ratio: along the gradient, Böhning's bound over the curvature that is there.
    blocks_ratio: along it, the curvature over that of the Hessian's diagonal blocks.
    """
    X, W = hidden.double(), weight.double()
    p = (X @ W.T).softmax(1)
    delta = p - one_hot(tokens, len(W))
    gradient = delta.T @ X / len(X)
    _, info = fusedstep.pinv(gradient, return_info=True)

    delta_unit, X_unit = (rows / rows.norm(dim=1, keepdim=True) for rows in (delta, X))
    kernel = (delta_unit @ delta_unit.T) * (X_unit @ X_unit.T)
    eigenvalues = torch.linalg.eigvalsh(kernel)

    change = X @ gradient.T
    mean = (p * change).sum(1, keepdim=True)
    curvature = (p * (change - mean).square()).sum()
    bound = (change - change.mean(1, keepdim=True)).square().sum() / 2
    blocks = (p * (1 - p) * change.square()).sum()
    return {
        "tokens": len(X),
        "classes": len(tokens.unique()),
        "gradient_rank": int(info.rank),
        "gradient_norm": float(gradient.norm()),
        "kernel_rank": int((eigenvalues > len(X) * 2.0**-52 * eigenvalues[-1]).sum()),
        "kernel_top": float(eigenvalues[-1]),
        "bound_ratio": float(bound / curvature),
        "blocks_ratio": float(curvature / blocks),
    }
