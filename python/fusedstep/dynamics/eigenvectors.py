"""The largest eigenvalues of a symmetric operator of which only products with vectors are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]  # from a vector [n] to the operator times it

MOST_PRODUCTS = 2000
# After a warm start: a vector that was the first may be an eigenvector still, and no longer the
# first. So many rounds from a random vector find what has overtaken it.
LEAST_WARM_ROUNDS = 6
# What is left of a unit vector that lies in the span of others, up to rounding.
DEPENDENT = 1e-10


def top_eigenpairs(
    function: str, product: Product, start: Tensor, k: int, tol: float, seed: int
) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues [k], descending, and their orthonormal eigenvectors [k, size].

    Block Lanczos with full reorthogonalization and thick restarts, written as Rayleigh-Ritz on a
    growing basis: the residuals of the leading Ritz vectors extend it, and where it is full its
    leading half starts the next. The block of k finds an eigenvalue as often as it is repeated, up
    to k times. A restarted Lanczos of this form: Wu and Simon 2000, SIAM Journal on Matrix Analysis
    and Applications 22(2), 602-616. All in float64; an eigenvalue is off by the residual's norm at
    most, and by its square over the distance to the other eigenvalues.

    Args:
        function: Who asks, for messages.
        product: The operator; its vectors are float64.
        start: Vectors [j, size] near the first eigenvectors; j may be 0.
        k: Number of eigenvalues, at most `size`.
        tol: Largest norm of a residual, relative to the operator's norm.
        seed: Of the random start.
    """
    generator = torch.Generator().manual_seed(seed)
    size, device = start.shape[1], start.device

    def random(count: int) -> Tensor:
        return torch.randn(count, size, dtype=torch.float64, generator=generator).to(device)

    block, least_rounds = (k + 1, LEAST_WARM_ROUNDS) if len(start) else (k, 0)
    room = 4 * block + 12
    basis = images = start[:0]
    new = orthonormal(torch.cat([start[:k], random(max(block - len(start), 1))]), basis)
    rounds = 0
    while True:
        basis = torch.cat([basis, new])
        images = torch.cat([images, torch.stack([product(vector) for vector in new])])
        projected = basis @ images.T
        values, mix = torch.linalg.eigh((projected + projected.T).cpu() / 2)
        values, mix = values.flip(0).to(device), mix.flip(1).to(device)
        front = mix[:, :block].T
        vectors = front @ basis
        residuals = front @ images - values[:block, None] * vectors
        lengths = residuals.norm(dim=1)
        unfinished = lengths > tol * values.abs().max()
        rounds += 1
        enough = len(basis) >= k and rounds > least_rounds
        if len(basis) == size or (enough and not unfinished[:k].any()):
            return values[:k], vectors[:k]
        if rounds * block > MOST_PRODUCTS:
            raise RuntimeError(
                f"{function}: no convergence after {MOST_PRODUCTS} products, eigenvalues "
                f"{values[:k].tolist()} with residuals {lengths[:k].tolist()}; a larger tol accepts "
                "them"
            )
        if len(basis) + block > room:
            keep = mix[:, : room // 2].T
            basis, images = keep @ basis, keep @ images
        new = orthonormal(residuals[unfinished], basis)
        if not len(new):
            new = orthonormal(random(1), basis)


def orthonormal(rows: Tensor, basis: Tensor) -> Tensor:
    """`rows` made orthonormal to the rows of `basis` and to one another; dependent ones left out.

    Gram-Schmidt twice, which is enough for full precision (Parlett 1998, section 6.9).
    """
    found = basis
    for row in rows:
        direction = row / row.norm()
        for _ in range(2):
            direction = direction - (found @ direction) @ found
            length = direction.norm()
            if not length > DEPENDENT:  # nor of a row of zeros, whose direction is NaN
                break
            direction = direction / length
        else:
            found = torch.cat([found, direction[None]])
    return found[len(basis) :]
