"""Newton's root-finding steps: for the mean loss, and for the losses of all tokens at once.

They solve loss = c for a constant c. The module implements the published methods ("Language Mixers
III: Optimization") exactly, and variants that converge. The method for one token after another is
in newton_recalculated.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_bool, require_count, require_number
from fusedstep.linalg import pinv
from fusedstep.linalg.numerics import whole_gram
from fusedstep.lm_head.problem import (
    NewtonResult,
    Problem,
    add_outer_,
    make_problem,
    square_norms,
)
from fusedstep.lm_head.softmax import directions_, logits_of, root_steps_
from fusedstep.switches import numerical

FULL_SCALINGS = ("published", "rank", "frobenius")
COMPONENTS_SCALINGS = ("published", "mean", "spectral")


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
    """Takes steps W -= (L - c) G⁺ᵀ, where L is the mean cross-entropy and G its gradient.

    The published step diverges, because it is rank(G) times too long: <G, G⁺ᵀ> is the rank of G, so
    the linear model of L moves by rank(G) times L - c instead of by L - c. "rank" divides by it.
    "frobenius" is Newton's step for one equation in many unknowns, the shortest to the root of the
    linear model: W -= (L - c) G / |G|².

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite. It is not changed.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, from 0 to V - 1: the token after each hidden vector.
        loss_constant: Irreducible loss c in nats, finite. The steps do not converge if the least
            possible loss exceeds it.
        steps: Number of steps, 0 or more.
        scaling: Length of a step: "published", "rank" or "frobenius", as above.
        chunk_size: Number of tokens whose logits `[chunk_size, V]` are held at a time. Default: as
            many as give 2^23 logits.

    Returns:
        NewtonResult; computed in float64 if weight is float64, else in float32. If it diverges,
        losses and weight become infinite or NaN.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value. The message is
            `newton_full: <argument> must <property>, got <value>`.

    Example:
        >>> weight, tokens = torch.zeros(3, 2), torch.tensor([0, 1, 2])
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> solve = fusedstep.lm_head.newton_full
        >>> result = solve(weight, hidden, tokens, steps=3, loss_constant=0.5, scaling="frobenius")
        >>> [round(loss, 2) for loss in result.losses.tolist()]
        [1.1, 0.7, 0.56, 0.52]

    Source: "Language Mixers III: Optimization", the step for the mean loss.
    """
    function = "newton_full"
    if scaling not in FULL_SCALINGS:
        refuse(function, "scaling", f"be one of {', '.join(FULL_SCALINGS)}", repr(scaling))
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
    """Takes steps W -= sum over tokens of (l - c) g⁺ᵀ, l the token's loss and g its gradient at W.

    g = (p - e_y) xᵀ has rank 1, so g⁺ᵀ = g / (|p - e_y|² |x|²): no matrix is inverted, and a step
    costs two products of N V d. The publication takes one backward pass and one singular value
    decomposition for each token.

    The sum is a Jacobi iteration for the N equations l = c. With J the matrix whose rows are the
    tokens' gradients, each divided by its norm, it converges near a root only if the largest
    eigenvalue of J Jᵀ is below 2. For similar tokens it approaches N, and the loss diverges.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite. It is not changed.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, from 0 to V - 1: the token after each hidden vector.
        loss_constant: Loss c in nats, finite.
        uphill: True, as published: a token whose loss is below c takes a step that raises its loss;
            the step grows without bound as the token becomes certain. False: such a token takes no
            step.
        steps: Number of steps, 0 or more.
        scaling: "published" adds up the steps; "mean" divides the sum by N, which is always enough;
            "spectral" divides it by an estimate of that eigenvalue.
        power_iterations: Number of iterations of that estimate, 1 or more; each costs three
            products of N V d. The estimate is a lower bound; half the eigenvalue is enough.
        chunk_size: Number of tokens whose logits `[chunk_size, V]` are held at a time. Default: as
            many as give 2^23 logits.

    Returns:
        NewtonResult; computed in float64 if weight is float64, else in float32. If it diverges,
        losses and weight become infinite or NaN.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value. The message is
            `newton_components: <argument> must <property>, got <value>`.

    Example:
        >>> weight, tokens = torch.zeros(3, 2), torch.tensor([0, 1, 2])
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> solve = fusedstep.lm_head.newton_components
        >>> result = solve(weight, hidden, tokens, steps=3, loss_constant=0.8, scaling="mean")
        >>> [round(loss, 2) for loss in result.losses.tolist()]
        [1.1, 1.03, 0.99, 0.96]

    Source: "Language Mixers III: Optimization", the sum of the steps of all tokens.
    """
    function = "newton_components"
    if scaling not in COMPONENTS_SCALINGS:
        refuse(function, "scaling", f"be one of {', '.join(COMPONENTS_SCALINGS)}", repr(scaling))
    require_bool(function, "uphill", uphill)
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
    """Takes steps W -= J⁺ (l - c): l the losses of n tokens, J `[n, V d]` their gradients at W.

    J⁺ = Jᵀ K⁺, and K = J Jᵀ is the elementwise product of two Gram matrices `[n, n]`, that of the
    p - e_y and that of the hidden vectors: J is never formed. The groups of n tokens come one after
    another, each at the weights after the previous one; with groups of one token this is
    `newton_components_recalculated`. Near a root, a step squares the error. Far from one, or if the
    n equations have no common root, the loss may rise; damping shortens the step.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite. It is not changed.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, from 0 to V - 1: the token after each hidden vector.
        loss_constant: Loss c in nats, finite.
        uphill: True, as published: a token whose loss is below c takes a step that raises its loss;
            the step grows without bound as the token becomes certain. False: such a token takes no
            step.
        steps: Number of passes over all tokens, 0 or more.
        group_size: Number of tokens in a system, 1 or more; `[group_size, V]` numbers are held at a
            time.
        damping: 0 or more. This times the mean of K's diagonal is added to the diagonal; 1 or more
            gives short steps.
        rtol: 0 or more. Eigenvalues of K not above rtol times the largest count as zero. Default:
            the larger of n * 2^-52 and (n * eps)², with the eps of the dtype of the computation.
        chunk_size: Number of tokens whose logits are held at a time for the losses between passes.
            Default: as many as give 2^23 logits.

    Returns:
        NewtonResult; computed in float64 if weight is float64, else in float32, and the systems in
        float64. If it diverges, losses and weight become infinite or NaN.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value. The message is
            `newton_joint: <argument> must <property>, got <value>`.

    Example:
        >>> weight, tokens = torch.zeros(3, 2), torch.tensor([0, 1, 2])
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> solve = fusedstep.lm_head.newton_joint
        >>> result = solve(weight, hidden, tokens, steps=3, loss_constant=0.8)
        >>> [round(loss, 2) for loss in result.losses.tolist()]
        [1.1, 0.86, 0.81, 0.8]

    Source: Newton's method for n equations in V d unknowns, with the damping of K. Levenberg 1944
    and D. Marquardt 1963.
    """
    function = "newton_joint"
    require_bool(function, "uphill", uphill)
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
            share = _solve_damped(kernel, above, damping, rtol, torch.finfo(weight.dtype).eps)
            add_outer_(weight, directions, -share * rows.miss, group)
        losses.append(problem.loss(weight))
    return NewtonResult(weight, torch.stack(losses))


def _solve_damped(
    kernel: Tensor, above: Tensor, damping: float, rtol: float | None, eps: float
) -> Tensor:
    """(K + damping * mean diagonal)⁺ above; NaN where K is not finite."""
    count = len(kernel)
    if rtol is None:
        rtol = max(count * 2.0**-52, (count * eps) ** 2)
    kernel.diagonal().add_(damping * kernel.diagonal().mean())
    return pinv(kernel, hermitian=True, rtol=rtol) @ above
