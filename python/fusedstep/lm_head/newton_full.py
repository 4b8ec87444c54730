"""Newton's root-finding step for the mean loss: as published, and in two lengths that suit it."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.linalg import pinv
from fusedstep.lm_head.newton_arguments import make_problem
from fusedstep.lm_head.newton_result import NewtonResult
from fusedstep.lm_head.numerical import numerical

SCALINGS = ("published", "rank", "frobenius")


@numerical
def newton_full(
    weight: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    *,
    loss_constant: float = 0.0,
    steps: int = 1,
    scaling: str = "published",
    chunk_size: int | None = None,
) -> NewtonResult:
    """W -= (L - c) G⁺ᵀ, where L is the mean cross-entropy and G its gradient.

    As published ("Language Mixers III: Optimization") this explodes, and not by rounding errors:
    <G, G⁺ᵀ> is the rank of G, so the linear model of L moves by rank(G) times the L - c that was
    asked for. "rank" divides by it. "frobenius" is Newton's step for one equation in many
    unknowns, the shortest to the root of the linear model: W -= (L - c) G / |G|².

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite; it is not written.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, in [0, V).
        loss_constant: c in nats, the loss that is taken for irreducible; finite. No step of this
            kind converges where the least loss exceeds it.
        steps: how many, 0 or more.
        scaling: "published", "rank" or "frobenius".
        chunk_size: tokens whose logits `[chunk_size, V]` are held at a time; by default as many as
            make 2^23 logits.

    Returns:
        NewtonResult; computed in float64 where weight is float64, else in float32. After an
        explosion losses and weight are infinite or NaN.

    Raises:
        ValueError, TypeError: `newton_full: <argument> must <property>, got <value>`.
    """
    function = "newton_full"
    if scaling not in SCALINGS:
        refuse(function, "scaling", f"be one of {', '.join(SCALINGS)}", repr(scaling))
    problem = make_problem(function, weight, hidden, tokens, loss_constant, steps, chunk_size)
    weight, losses = problem.weight, []
    for _ in range(steps):
        loss, gradient = problem.gradient(weight)
        losses.append(loss)
        length = loss - problem.loss_constant
        weight.sub_(length.to(weight.dtype) * _right_inverse(gradient, scaling))
    losses.append(problem.loss(weight))
    return NewtonResult(weight, torch.stack(losses))


def _right_inverse(gradient: Tensor, scaling: str) -> Tensor:
    """`[V, d]`: G⁺ᵀ, G⁺ᵀ / rank(G) or G / |G|²; 0 where G is 0."""
    if scaling == "frobenius":
        size = torch.linalg.vector_norm(gradient)
        return gradient / torch.where(size > 0, size, 1.0).square()
    inverse, info = pinv(gradient, return_info=True)
    return inverse.mT if scaling == "published" else inverse.mT / info.rank.clamp(min=1)
