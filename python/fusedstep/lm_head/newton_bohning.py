"""Newton's minimising step with one fixed bound on the Hessian: the loss falls at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedstep.linalg import pinv
from fusedstep.linalg.numerics import gram_error
from fusedstep.lm_head.newton_arguments import make_problem
from fusedstep.lm_head.newton_result import NewtonResult
from fusedstep.lm_head.numerical import numerical


@numerical
def newton_bohning(
    weight: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    *,
    loss_constant: float = 0.0,
    steps: int = 1,
    chunk_size: int | None = None,
) -> NewtonResult:
    """W -= 2 G A⁺, with G the gradient of the mean cross-entropy and A = XᵀX / N.

    diag(p) - p pᵀ is at most (I - 1 1ᵀ / V) / 2 for every p (Böhning 1992, "Multinomial logistic
    regression algorithm"), so the Hessian is at most its Kronecker product with A, whose
    pseudo-inverse on G is 2 G A⁺. A is factorised once; a step then costs a gradient and 2 V d².
    The loss never rises, from any start; convergence is linear.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite; it is not written.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, in [0, V).
        loss_constant: without influence: an irreducible part of the loss has no derivative.
        steps: how many, 0 or more.
        chunk_size: tokens whose logits `[chunk_size, V]` are held at a time; by default as many as
            make 2^23 logits.

    Returns:
        NewtonResult; computed in float64 where weight is float64, else in float32, A⁺ in float64.
        Once rounding errors would make the loss rise, weight and loss stay as they are.

    Raises:
        ValueError, TypeError: `newton_bohning: <argument> must <property>, got <value>`.
    """
    problem = make_problem(
        "newton_bohning", weight, hidden, tokens, loss_constant, steps, chunk_size
    )
    weight = problem.weight
    count, width = problem.hidden.shape
    # Below this A is made of rounding errors, its own or those of the gradient.
    rtol = max(gram_error(count, width), width * torch.finfo(weight.dtype).eps ** 2)
    inverse = pinv(problem.second_moment(), hermitian=True, rtol=rtol).to(weight.dtype)
    loss, gradient = problem.gradient(weight)
    losses = [loss]
    for _ in range(steps):
        lower = torch.addmm(weight, gradient, inverse, alpha=-2)
        new_loss, new_gradient = problem.gradient(lower)
        falls = new_loss <= loss
        weight = torch.where(falls, lower, weight)
        gradient = torch.where(falls, new_gradient, gradient)
        loss = torch.where(falls, new_loss, loss)
        losses.append(loss)
    return NewtonResult(weight, torch.stack(losses))
