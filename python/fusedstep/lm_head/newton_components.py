"""Newton's root-finding step for every token at the same weights, all steps added up."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_count
from fusedstep.lm_head.newton_arguments import make_problem
from fusedstep.lm_head.newton_result import NewtonResult
from fusedstep.lm_head.numerical import numerical
from fusedstep.lm_head.problem import Problem, add_outer_, square_norms
from fusedstep.lm_head.softmax import directions_, root_steps_

SCALINGS = ("published", "mean", "spectral")


@numerical
def newton_components(
    weight: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    *,
    loss_constant: float = 0.0,
    uphill: bool = True,
    steps: int = 1,
    scaling: str = "published",
    power_iterations: int = 8,
    chunk_size: int | None = None,
) -> NewtonResult:
    """W -= the sum over tokens of (l - c) g⁺ᵀ, with l the token's loss and g its gradient at W.

    g = (p - e_y) xᵀ has rank 1, so g⁺ᵀ = g / (|p - e_y|² |x|²): no matrix is inverted, and a step
    costs two products of N V d. What is published ("Language Mixers III: Optimization") is one
    backward pass and one singular value decomposition a token.

    The sum is a Jacobi iteration for the N equations l = c. With J the matrix whose rows are the
    tokens' gradients, each divided by its norm, it converges near a root only if the largest
    eigenvalue of J Jᵀ is below 2; for tokens that resemble each other it nears N, and the loss
    explodes.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite; it is not written.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, in [0, V).
        loss_constant: c in nats, finite.
        uphill: True: a token whose loss is below c steps back up, as published, the further the
            surer the token is, without bound. False: it stays.
        steps: how many, 0 or more.
        scaling: "published" adds the steps up, "mean" divides by N, which is always enough,
            "spectral" by an estimate of that eigenvalue.
        power_iterations: for "spectral", 1 or more, each at three products of N V d. The estimate
            comes from below; from half the eigenvalue on it is enough.
        chunk_size: tokens whose logits `[chunk_size, V]` are held at a time; by default as many as
            make 2^23 logits.

    Returns:
        NewtonResult; computed in float64 where weight is float64, else in float32. After an
        explosion losses and weight are infinite or NaN.

    Raises:
        ValueError, TypeError: `newton_components: <argument> must <property>, got <value>`.
    """
    function = "newton_components"
    if scaling not in SCALINGS:
        refuse(function, "scaling", f"be one of {', '.join(SCALINGS)}", repr(scaling))
    require_count(function, "power_iterations", power_iterations, 1)
    problem = make_problem(function, weight, hidden, tokens, loss_constant, steps, chunk_size)
    weight, losses = problem.weight, []
    for _ in range(steps):
        loss, step = _added_up(problem, weight, uphill)
        losses.append(loss)
        if scaling == "mean":
            step /= len(problem.tokens)
        elif scaling == "spectral":
            step /= _largest_eigenvalue(problem, weight, step, power_iterations)
        weight.sub_(step)
    losses.append(problem.loss(weight))
    return NewtonResult(weight, torch.stack(losses))


def _added_up(problem: Problem, weight: Tensor, uphill: bool) -> tuple[Tensor, Tensor]:
    """The mean loss, and the sum of the tokens' steps `[V, d]`."""
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    step = torch.zeros_like(weight)
    for hidden, tokens, logits in problem.chunks(weight):
        squares = square_norms(hidden)
        total += root_steps_(logits, tokens, squares, problem.loss_constant, uphill).sum()
        step.addmm_(logits.mT, hidden)
    return total / len(problem.tokens), step


def _largest_eigenvalue(problem: Problem, weight: Tensor, start: Tensor, iterations: int) -> Tensor:
    """A lower bound on that of J Jᵀ, by power iteration with Jᵀ J, which has the same: 1 or more.

    `start` `[V, d]` is in the range of Jᵀ.
    """
    eigenvalue = torch.ones((), dtype=weight.dtype, device=weight.device)
    vector = start
    for _ in range(iterations):
        size = torch.linalg.vector_norm(vector)
        vector = vector / torch.where(size > 0, size, 1.0)
        image = torch.zeros_like(vector)
        for hidden, tokens, logits in problem.chunks(weight):
            rows = directions_(logits, tokens)
            overlap = (logits * (hidden @ vector.mT)).sum(1)
            square = rows.square * square_norms(hidden)
            moves = (rows.miss > 0) & (square > 0)
            add_outer_(image, logits, torch.where(moves, overlap / square, 0.0), hidden)
        vector, eigenvalue = image, torch.linalg.vector_norm(image)
    return eigenvalue.clamp(min=1)
