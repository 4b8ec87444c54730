"""Newton-Schulz: matrices brought near the closest orthogonal one by products alone, in batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Of a batch: its iterates and Gram matrices, of two bytes an element, take up to 600 MB.
MAX_ELEMENTS = 2**26


def orthogonalize_(
    matrices: Sequence[Tensor],
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    max_elements: int = MAX_ELEMENTS,
) -> None:
    """Replaces each U S V^T by U S' V^T with S' near 1, in bfloat16.

    The quintic iteration X <- a X + (b G + c G^2) X with G = X X^T, from X / max(|X|, eps), of
    Jordan 2024, https://kellerjordan.github.io/posts/muon/, with the products, the roundings and
    the transposing of tall matrices of torch.optim.Muon; matrices of one shape share a batch.

    Args:
        matrices: [m, n] on one device, of any shapes, dtypes and layouts; written.
        coefficients: a, b, c.
        steps: iterations.
        eps: the smallest Frobenius norm to divide by.
        max_elements: of a batch; a matrix with more makes one of its own.
    """
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        if matrix.numel() > 0:
            by_shape.setdefault(matrix.shape, []).append(matrix)
    for shape, equal in by_shape.items():
        count = max(1, max_elements // shape.numel())
        for begin in range(0, len(equal), count):
            chunk = equal[begin : begin + count]
            batch = torch.stack([matrix.bfloat16() for matrix in chunk])
            torch._foreach_copy_(chunk, _iterate(batch, coefficients, steps, eps).unbind())


def _iterate(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The iteration on a batch [k, m, n] of bfloat16, which is overwritten."""
    a, b, c = coefficients
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x  # the smaller Gram matrix
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x.div_(norm.clamp_(min=eps))  # so that no singular value exceeds 1
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
