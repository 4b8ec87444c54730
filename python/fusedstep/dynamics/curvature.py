"""The largest eigenvalues of a loss's Hessian, and its sharpness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_count, require_rate
from fusedstep.dynamics.eigenvectors import top_eigenpairs
from fusedstep.dynamics.products import HessianProducts, Losses, make_products

Vectors = list[list[Tensor]]  # for each eigenvector a tensor for each parameter

# The default of `tol`: what products in the parameters' dtype can reach.
TOLERANCES = {
    "autograd": {torch.float64: 1e-8, torch.float32: 1e-4},
    "differences": {torch.float64: 1e-6, torch.float32: 3e-3},
}
HALF_TOLERANCE = 0.03


class Eigenpairs(NamedTuple):
    """The largest eigenvalues of a Hessian and their eigenvectors.

    Attributes:
        values: Eigenvalues [k] in float64, descending.
        vectors: A list for each eigenvalue with a float64 tensor for each parameter, of its shape;
            together they are orthonormal.
    """

    values: Tensor
    vectors: Vectors


def hessian_top_eigenvalues(
    loss_fn: Losses,
    params: Sequence[Tensor],
    k: int = 1,
    *,
    preconditioner: Sequence[Tensor] | None = None,
    seed: int = 0,
    start: Vectors | None = None,
    products: str = "autograd",
    tol: float | None = None,
) -> Eigenpairs:
    """The k largest eigenvalues of the Hessian of a loss, and their eigenvectors.

    The largest in the algebraic sense: negative ones come last. A block Lanczos method in float64
    on Hessian-vector products; no matrix is formed. It keeps up to 8 k + 32 vectors of 8 bytes per
    parameter. Nothing is changed: no `.grad` is written, and random numbers, such as those of
    dropout, are the same for every product and not used up. The functions themselves decide on
    training or evaluation mode; buffers that a loss writes in training mode, such as batch
    normalization's averages, are written.

    Args:
        loss_fn: A function without arguments that returns the loss, a scalar; or a list of such
            functions, one a micro-batch, whose mean is the loss. Only one micro-batch's graph
            exists at a time.
        params: Tensors that the loss depends on, which require gradients.
        k: Number of eigenvalues, at least 1 and at most the number of elements.
        preconditioner: A tensor d like each parameter, above 0: the operator is D^-1/2 H D^-1/2,
            D = diag(d), whose eigenvalues are those of D^-1 H. None: D = I.
        seed: Of the random start; the global generators are not used.
        start: Eigenvectors of an earlier call, for a warm start while the parameters move.
        products: "autograd": second derivatives by a backward pass of a backward pass.
            "differences": the difference of two gradients, for operators that have no second
            derivative, such as fused attention. float32 and float64 parameters are then moved by a
            vector of length eps^(1/3), and restored to the bit.
        tol: Largest residual |H v - value v|, relative to the norm of H, above 0. An eigenvalue is
            off by at most that much; where it lies apart from others, by the square. None: 1e-8 for
            float64 and 1e-4 for float32 parameters, with "differences" 1e-6 and 3e-3; 0.03 for
            half precision.

    Returns:
        `Eigenpairs(values, vectors)`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the loss or its second derivatives are not
            finite. The message is `hessian_top_eigenvalues: <argument> must <property>, got
            <value>`.
        RuntimeError: The loss has no second derivatives, or there was no convergence.

    Example:
        >>> w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        >>> curvatures = torch.tensor([5.0, 1.0, -2.0], dtype=torch.float64)
        >>> pairs = hessian_top_eigenvalues(lambda: (curvatures * w**2).sum() / 2, [w], k=2)
        >>> [round(value, 9) for value in pairs.values.tolist()]
        [5.0, 1.0]

    Source: products: Pearlmutter 1994, Neural Computation 6(1), 147-160; restarts: Wu and Simon
    2000, SIAM Journal on Matrix Analysis and Applications 22(2), 602-616.
    """
    name = "hessian_top_eigenvalues"
    hessian = make_products(name, loss_fn, params, products)
    return eigenpairs(
        name, hessian, k, preconditioner=preconditioner, seed=seed, start=start, tol=tol
    )


def sharpness(
    loss_fn: Losses,
    params: Sequence[Tensor],
    *,
    seed: int = 0,
    products: str = "autograd",
    tol: float | None = None,
) -> float:
    """The largest eigenvalue of the Hessian of a loss.

    Gradient descent on a quadratic model of the loss diverges where it exceeds
    `stability_threshold(optimizer)`; training tends to hover just there.

    Args:
        loss_fn: As in `hessian_top_eigenvalues`.
        params: As in `hessian_top_eigenvalues`.
        seed: As in `hessian_top_eigenvalues`.
        products: As in `hessian_top_eigenvalues`.
        tol: As in `hessian_top_eigenvalues`.

    Returns:
        The eigenvalue.

    Raises:
        TypeError, ValueError, RuntimeError: As in `hessian_top_eigenvalues`; the message begins
            with `sharpness: `.

    Example:
        >>> w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        >>> round(sharpness(lambda: (w**4).sum(), [w]), 6)
        12.0

    Source: Cohen et al. 2021, section 2, arXiv 2103.00065.
    """
    hessian = make_products("sharpness", loss_fn, params, products)
    return float(eigenpairs("sharpness", hessian, 1, seed=seed, tol=tol).values[0])


def eigenpairs(
    function: str,
    hessian: HessianProducts,
    k: int,
    *,
    preconditioner: Any = None,
    seed: int = 0,
    start: Any = None,
    tol: Any = None,
) -> Eigenpairs:
    """`hessian_top_eigenvalues` for a function of this name."""
    k = require_count(function, "k", k, least=1)
    if k > hessian.size:
        refuse(function, "k", f"be at most {hessian.size}, the number of elements", k)
    seed = require_count(function, "seed", seed, below=2**63)
    tol = _require_tol(function, tol, hessian)
    scale = _inverse_root(function, hessian, preconditioner)
    device = hessian.params[0].device
    begin = torch.empty(0, hessian.size, dtype=torch.float64, device=device)
    for i, vector in enumerate(start or ()):
        parts = _require_like(function, f"start[{i}]", vector, hessian)
        begin = torch.cat([begin, hessian.flat(parts)[None]])
    values, vectors = top_eigenpairs(
        function,
        lambda vector: scale * hessian(scale * vector),
        begin, k, tol, seed,
    )  # fmt: skip
    return Eigenpairs(values, [hessian.unflat(vector) for vector in vectors])


def _require_tol(function: str, tol: Any, hessian: HessianProducts) -> float:
    if tol is None:
        of_kind = TOLERANCES[hessian.kind]
        return max(of_kind.get(p.dtype, HALF_TOLERANCE) for p in hessian.params)
    number = require_rate(function, "tol", tol)
    if number == 0:
        refuse(function, "tol", "be above 0", tol)
    return number


def _inverse_root(function: str, hessian: HessianProducts, preconditioner: Any) -> Tensor | float:
    """D^-1/2 as a vector."""
    if preconditioner is None:
        return 1.0
    parts = _require_like(function, "preconditioner", preconditioner, hessian)
    for i, part in enumerate(parts):
        if not bool((part.isfinite() & (part > 0)).all()):
            worst = part[~(part.isfinite() & (part > 0))][0].item()
            refuse(function, f"preconditioner[{i}]", "be finite and above 0", worst)
    return hessian.flat(parts).rsqrt()


def _require_like(
    function: str, argument: str, tensors: Any, hessian: HessianProducts
) -> list[Tensor]:
    """A tensor for each parameter, of its shape and on its device."""
    if isinstance(tensors, Tensor) or not hasattr(tensors, "__len__"):
        refuse(function, argument, "be a list of tensors", type(tensors).__name__, TypeError)
    if len(tensors) != len(hessian.params):
        must = f"have a tensor for each of {len(hessian.params)} parameters"
        refuse(function, argument, must, len(tensors))
    for i, (tensor, p) in enumerate(zip(tensors, hessian.params, strict=True)):
        where = f"{argument}[{i}]"
        if not isinstance(tensor, Tensor):
            refuse(function, where, "be a tensor", type(tensor).__name__, TypeError)
        if tensor.shape != p.shape:
            refuse(function, where, f"have shape {tuple(p.shape)}", tuple(tensor.shape))
        if tensor.device != p.device:
            refuse(function, where, f"be on {p.device}", tensor.device)
    return list(tensors)
