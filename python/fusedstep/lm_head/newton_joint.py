"""Newton's root-finding step for all tokens of a group at once: a linear system of their size."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedstep.checks import require_count, require_number
from fusedstep.linalg import pinv
from fusedstep.linalg.numerics import whole_gram
from fusedstep.lm_head.newton_arguments import make_problem
from fusedstep.lm_head.newton_result import NewtonResult
from fusedstep.lm_head.numerical import numerical
from fusedstep.lm_head.problem import add_outer_
from fusedstep.lm_head.softmax import directions_, logits_of


@numerical
def newton_joint(
    weight: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    *,
    loss_constant: float = 0.0,
    uphill: bool = True,
    steps: int = 1,
    group_size: int = 1024,
    damping: float = 0.0,
    rtol: float | None = None,
    chunk_size: int | None = None,
) -> NewtonResult:
    """W -= J⁺ (l - c): l the losses of a group's tokens, J `[n, V d]` their gradients at W.

    J⁺ = Jᵀ K⁺, and K = J Jᵀ is the elementwise product of two Gram matrices `[n, n]`, that of the
    p - e_y and that of the hidden vectors: J is never made. The groups come one after another, each
    at the weights the last one left; groups of one token are `newton_components_recalculated`.
    A step near a root squares the error. Far from one, and where n equations cannot all be met, the
    loss may rise; damping shortens the step.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite; it is not written.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, in [0, V).
        loss_constant: c in nats, finite.
        uphill: True: a token whose loss is below c steps back up, as published, the further the
            surer the token is, without bound. False: it stays.
        steps: passes over all tokens, 0 or more.
        group_size: tokens in a system, 1 or more; `[group_size, V]` numbers are held at a time.
        damping: 0 or more: this times the mean of K's diagonal is added to it (Levenberg and
            Marquardt); 1 and more for short steps.
        rtol: eigenvalues of K not above rtol times the largest count as zero; by default the larger
            of n * 2^-52 and (n * eps)², with the eps of the dtype that is computed in.
        chunk_size: for the losses between passes, tokens whose logits are held at a time; by
            default as many as make 2^23 logits.

    Returns:
        NewtonResult; computed in float64 where weight is float64, else in float32, and the systems
        in float64. Where the loss explodes losses and weight are infinite or NaN.

    Raises:
        ValueError, TypeError: `newton_joint: <argument> must <property>, got <value>`.
    """
    function = "newton_joint"
    require_count(function, "group_size", group_size, 1)
    damping = require_number(function, "damping", damping)
    if rtol is not None:
        rtol = require_number(function, "rtol", rtol)
    problem = make_problem(
        function, weight, hidden, tokens, loss_constant, steps, chunk_size, position_major=True
    )
    weight = problem.weight
    losses = [problem.loss(weight)]
    for _ in range(steps):
        for group, labels in problem.parts(group_size):
            directions = logits_of(group, weight)
            rows = directions_(directions, labels)
            kernel = (
                whole_gram(directions.mT) * whole_gram(group.mT) * torch.outer(rows.miss, rows.miss)
            )
            above = rows.loss - problem.loss_constant
            if not uphill:
                above.clamp_(min=0)
            share = _solve(kernel, above, damping, rtol, torch.finfo(weight.dtype).eps)
            add_outer_(weight, directions, -share * rows.miss, group)
        losses.append(problem.loss(weight))
    return NewtonResult(weight, torch.stack(losses))


def _solve(kernel: Tensor, above: Tensor, damping: float, rtol: float | None, eps: float) -> Tensor:
    """(K + damping * mean diagonal)⁺ above; NaN where K is not finite."""
    count = len(kernel)
    if rtol is None:
        rtol = max(count * 2.0**-52, (count * eps) ** 2)
    kernel.diagonal().add_(damping * kernel.diagonal().mean())
    return pinv(kernel, hermitian=True, rtol=rtol) @ above
