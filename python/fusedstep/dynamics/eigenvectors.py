"""The largest eigenvalues of a symmetric operator of which only products with vectors are known.

Written here because torch.lobpcg takes matrices alone, and SciPy's eigsh works on the CPU and has a
single vector at a time, which can miss a repeated eigenvalue.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]  # from a vector [n] to the operator times it

MOST_PRODUCTS = 2000
# After a warm start: a vector that was the first may be an eigenvector still, and no longer the
# first. One more vector, a random one, looks for what has overtaken it: for so many rounds at
# least, and until its Ritz value is below the others by its residual, or an eigenvalue.
WARM_ROUNDS = 4
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

    block = k + 1 if len(start) else k
    room = 4 * block + 12  # vectors before a restart, which keeps half of them
    basis, images = (torch.empty(room, size, dtype=torch.float64, device=device) for _ in "ab")
    done, rounds = 0, 0
    count = extend(basis, 0, torch.cat([start[:k], random(max(block - len(start), 1))]))
    while True:
        for i in range(done, count):
            images[i] = product(basis[i])
        projected = basis[:count] @ images[:count].T
        values, mix = torch.linalg.eigh((projected + projected.T).cpu() / 2)
        values, mix = values.flip(0).to(device), mix.flip(1).to(device)
        front = mix[:, :block].T
        vectors = front @ basis[:count]
        residuals = front @ images[:count] - values[:block, None] * vectors
        lengths = residuals.norm(dim=1)
        unfinished = lengths > tol * values.abs().max()
        rounds += 1
        if len(unfinished) > k:
            below = values[k] + lengths[k] <= values[k - 1]
            unfinished[k] = rounds <= WARM_ROUNDS or bool(unfinished[k] and not below)
        if count == size or (count >= block and not unfinished.any()):
            return values[:k], vectors[:k]
        if rounds * block > MOST_PRODUCTS:
            raise RuntimeError(
                f"{function}: no convergence after {MOST_PRODUCTS} products: eigenvalues "
                f"{values[:k].tolist()}, residuals {lengths[:k].tolist()}; a larger tol takes them"
            )
        if count + block > room:
            keep = mix[:, : room // 2].T
            restarted = keep @ basis[:count], keep @ images[:count]
            count = len(keep)
            basis[:count], images[:count] = restarted
        done, count = count, extend(basis, count, residuals[unfinished])
        if count == done:
            count = extend(basis, count, random(1))


def extend(basis: Tensor, count: int, rows: Tensor) -> int:
    """Appends `rows` to the first `count` rows of `basis`, orthonormal; returns the new count.

    A row that depends on the others is left out. Gram-Schmidt twice is enough for full precision
    (Parlett 1998, The Symmetric Eigenvalue Problem, section 6.9).
    """
    for row in rows:
        direction = row / row.norm()
        for _ in range(2):
            direction = direction - (basis[:count] @ direction) @ basis[:count]
            length = direction.norm()
            if not length > DEPENDENT:  # nor of a row of zeros, whose direction is NaN
                break
            direction = direction / length
        else:
            basis[count] = direction
            count += 1
    return count
