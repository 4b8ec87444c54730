"""Newton's minimising steps: conjugate gradients, a bound on the Hessian, its diagonal blocks.

The loss is the mean cross-entropy. It never rises, from any start.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse, require_count, require_number
from fusedstep.linalg import pinv
from fusedstep.lm_head.batch import Spectrum, spectrum
from fusedstep.lm_head.problem import (
    CHUNK_ELEMENTS,
    NewtonResult,
    Problem,
    make_problem,
)
from fusedstep.switches import numerical

LEAST_CURVATURE = 1e-3  # of the mean: the least for a class that is never expected
LEAST_SCALE = 1e-290  # below it float64 loses digits
SUFFICIENT = 1e-4  # of the decrease that the slope promises: Armijo 1966, as usually chosen
ROUNDING = 4  # roundoffs of the loss hide a decrease


@numerical
def newton_cg(
    weight: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    *,
    loss_constant: float = 0.0,
    steps: int = 1,
    max_products: int = 100,
    damping: float = 0.01,
    chunk_size: int | None = None,
) -> NewtonResult:
    """Takes steps W += t S, where (H + λ I) S = -G is solved to a tolerance; t by a line search.

    G and H are the gradient and Hessian of the mean cross-entropy. Conjugate gradients stop at a
    residual of min(1/2, √|G|) |G|, so few products are spent far from the optimum, and convergence
    near it is faster than linear. A product of H costs 6 N V d: with A = X Uᵀ,
    H U = (P ∘ (A - rowsum(P ∘ A)))ᵀ X / N. The preconditioner is diag(τ) ⊗ (XᵀX / N) + λ I, with τ
    the mean of p (1 - p) of each class. t is halved from 1 until the loss falls by enough (Armijo),
    so the loss never rises, from any start.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite. It is not changed.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, from 0 to V - 1: the token after each hidden vector.
        loss_constant: Ignored; accepted for a common signature.
        steps: Number of steps, 0 or more.
        max_products: Largest number of products of H in a step, 1 or more.
        damping: 0 or more; λ is this times s |G|, with s² the mean square of hidden's elements. It
            shortens steps in directions in which the loss is nearly linear, far from an optimum or
            if there is none, and vanishes near one.
        chunk_size: Number of tokens whose logits `[chunk_size, V]` are held at a time. Default: as
            many as give 2^23 logits.

    Returns:
        NewtonResult; computed in float64 if weight is float64, else in float32.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value. The message is
            `newton_cg: <argument> must <property>, got <value>`.

    Example:
        >>> weight, tokens = torch.zeros(3, 2), torch.tensor([0, 1, 2])
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> result = fusedstep.lm_head.newton_cg(weight, hidden, tokens, steps=3)
        >>> [round(loss, 2) for loss in result.losses.tolist()]
        [1.1, 0.57, 0.5, 0.48]

    Source: S. C. Eisenstat and H. F. Walker 1996, "Choosing the forcing terms in an inexact Newton
    method"; L. Armijo 1966 for the line search; N. Doikov 2023, "Minimizing quasi-self-concordant
    functions by gradient regularization of Newton method", for the damping.
    """
    function = "newton_cg"
    require_count(function, "max_products", max_products, 1)
    damping = require_number(function, "damping", damping)
    problem = make_problem(function, weight, hidden, tokens, loss_constant, steps, chunk_size)
    weight, moment = problem.weight, spectrum(problem.second_moment())
    losses = [problem.loss(weight)]
    for _ in range(steps):
        loss, gradient = problem.gradient(weight)
        curvature = _curvature(problem, weight)
        ridge = damping * float(gradient.norm() * moment.values.mean().sqrt())
        precondition = _Preconditioner(curvature, moment, ridge)
        step = _solve(problem, weight, gradient, precondition, ridge, max_products)
        slope = _inner(gradient, step)
        if -math.inf < slope < 0:
            weight, loss = _backtrack(problem.loss, weight, step, loss, slope)
        losses.append(loss)
    return NewtonResult(weight, torch.stack(losses))


def hessian_product(problem: Problem, weight: Tensor, vector: Tensor) -> Tensor:
    """H U for U `[V, d]`, at the weights given."""
    product = torch.zeros_like(weight)
    for hidden, _, logits in problem.chunks(weight):
        expected = logits.softmax(1)
        change = hidden @ vector.mT
        change -= (expected * change).sum(1, keepdim=True)
        product.addmm_(expected.mul_(change).mT, hidden, alpha=1 / len(problem.tokens))
    return product


class _Preconditioner:
    """The inverse of diag(τ) ⊗ A + λ I, with τ and A kept away from 0.

    Without λ it would be wrong by orders of magnitude for the many rare classes, whose τ is far
    below λ.
    """

    def __init__(self, curvature: Tensor, moment: Spectrum, ridge: float) -> None:
        mean = moment.values.mean()
        values = moment.values + torch.where(mean > 0, 1e-6 * mean, 1.0)
        least = LEAST_CURVATURE * curvature.mean()
        classes = torch.where(least > 0, curvature.maximum(least), 1.0)
        self._vectors = moment.vectors.to(curvature.dtype)
        self._inverse = 1 / (torch.outer(classes, values.to(curvature.dtype)) + ridge)

    def __call__(self, residual: Tensor) -> Tensor:
        return (self._inverse * (residual @ self._vectors)) @ self._vectors.mT


def _curvature(problem: Problem, weight: Tensor) -> Tensor:
    """The mean of p (1 - p) for each class, `[V]`."""
    total = weight.new_zeros(len(weight))
    for _, _, logits in problem.chunks(weight):
        expected = logits.softmax(1)
        total += (expected * (1 - expected)).sum(0)
    return total / len(problem.tokens)


def _solve(
    problem: Problem,
    weight: Tensor,
    gradient: Tensor,
    precondition: _Preconditioner,
    ridge: float,
    max_products: int,
) -> Tensor:
    """S with |(H + ridge) S + G| small enough: preconditioned conjugate gradients from 0."""
    size = math.sqrt(_inner(gradient, gradient))
    least = math.sqrt(torch.finfo(weight.dtype).eps)  # the loss shows no more digits than this
    enough = max(least, min(0.5, math.sqrt(size))) * size
    solution, residual = torch.zeros_like(weight), -gradient
    direction = towards = precondition(residual)
    energy = _inner(residual, towards)
    for _ in range(max_products):
        if not math.sqrt(_inner(residual, residual)) > enough:
            break
        image = hessian_product(problem, weight, direction).add_(direction, alpha=ridge)
        curvature = _inner(direction, image)
        if not min(curvature, energy) > 0:  # flat to rounding errors
            break
        length = energy / curvature
        solution = solution.add(direction, alpha=length)
        residual = residual.sub(image, alpha=length)
        towards = precondition(residual)
        energy, last = _inner(residual, towards), energy
        direction = towards.add(direction, alpha=energy / last)
    return solution


def _inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two matrices."""
    return float((a * b).sum(dtype=torch.float64))


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
    """Takes steps W -= 2 G A⁺, with G the gradient of the mean cross-entropy and A = XᵀX / N.

    diag(p) - p pᵀ is at most (I - 1 1ᵀ / V) / 2 for every p, so the Hessian is at most its
    Kronecker product with A, whose pseudo-inverse on G is 2 G A⁺. A is factorised once; a step then
    costs a gradient and 2 V d². The loss never rises, from any start; convergence is linear.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite. It is not changed.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, from 0 to V - 1: the token after each hidden vector.
        loss_constant: Ignored; accepted for a common signature.
        steps: Number of steps, 0 or more.
        chunk_size: Number of tokens whose logits `[chunk_size, V]` are held at a time. Default: as
            many as give 2^23 logits.

    Returns:
        NewtonResult; computed in float64 if weight is float64, else in float32, A⁺ in float64. Once
        rounding errors would make the loss rise, weight and loss stop changing.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value. The message is
            `newton_bohning: <argument> must <property>, got <value>`.

    Example:
        >>> weight, tokens = torch.zeros(3, 2), torch.tensor([0, 1, 2])
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> result = fusedstep.lm_head.newton_bohning(weight, hidden, tokens, steps=3)
        >>> [round(loss, 2) for loss in result.losses.tolist()]
        [1.1, 0.65, 0.58, 0.55]

    Source: D. Böhning 1992, "Multinomial logistic regression algorithm".
    """
    problem = make_problem(
        "newton_bohning", weight, hidden, tokens, loss_constant, steps, chunk_size
    )
    weight = problem.weight
    count, width = problem.hidden.shape
    # Eigenvalues of A below this are rounding errors, its own or the gradient's.
    rtol = max(_C.gram_error(count, width), width * torch.finfo(weight.dtype).eps ** 2)
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


@numerical
def newton_block_diagonal(
    weight: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    *,
    loss_constant: float = 0.0,
    steps: int = 1,
    damping: float = 1e-6,
    chunk_size: int | None = None,
) -> NewtonResult:
    """Takes steps W_c -= t (H_c + λ_c I)⁻¹ G_c for each class c.

    H_c = Xᵀ diag(p_c (1 - p_c)) X / N, and G is the gradient of the mean cross-entropy. The Hessian
    is at most twice its diagonal blocks, since diag(p) - p pᵀ is the Laplacian of a graph, but may
    exceed the blocks themselves, so whole steps may overshoot. Therefore t starts at 1/2 and is
    halved until the loss falls by enough (Armijo): the loss never rises, from any start.
    Convergence is linear. The blocks cost N V d² + V d³ / 3 per step and are formed for some
    classes at a time.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite. It is not changed.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, from 0 to V - 1: the token after each hidden vector.
        loss_constant: Ignored; accepted for a common signature.
        steps: Number of steps, 0 or more.
        damping: Above 0; λ_c is this times (the mean diagonal of H_c + |G_c| s), with s² the mean
            square of hidden's elements. It allows ranks below d and bounds the steps where the loss
            is linear, far from the optimum.
        chunk_size: Number of tokens whose logits `[chunk_size, V]` are held at a time. Default: as
            many as give 2^23 logits.

    Returns:
        NewtonResult; computed in float64 if weight is float64, else in float32, the systems solved
        in float64.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value. The message is
            `newton_block_diagonal: <argument> must <property>, got <value>`.

    Example:
        >>> weight, tokens = torch.zeros(3, 2), torch.tensor([0, 1, 2])
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> result = fusedstep.lm_head.newton_block_diagonal(weight, hidden, tokens, steps=3)
        >>> [round(loss, 2) for loss in result.losses.tolist()]
        [1.1, 0.63, 0.53, 0.5]

    Source: the blocks of the Hessian in D. Böhning 1992, "Multinomial logistic regression
    algorithm"; L. Armijo 1966 for the line search.
    """
    function = "newton_block_diagonal"
    damping = require_number(function, "damping", damping, "be above 0")
    if damping == 0:
        refuse(function, "damping", "be above 0", damping)
    problem = make_problem(function, weight, hidden, tokens, loss_constant, steps, chunk_size)
    weight, size = problem.weight, problem.second_moment().diagonal().mean().sqrt()
    losses = [problem.loss(weight)]
    for _ in range(steps):
        loss, gradient = problem.gradient(weight)
        step = _half_step(problem, weight, gradient, damping, size)
        slope = float((gradient * step).sum(dtype=torch.float64))
        if -math.inf < slope < 0:
            weight, loss = _backtrack(problem.loss, weight, step, loss, slope)
        losses.append(loss)
    return NewtonResult(weight, torch.stack(losses))


def _half_step(
    problem: Problem, weight: Tensor, gradient: Tensor, damping: float, size: Tensor
) -> Tensor:
    """-(H_c + λ_c I)⁻¹ G_c / 2 of all classes, `[V, d]`; `size`: the root mean square of hidden."""
    log_sums = torch.cat([logits.logsumexp(1) for _, _, logits in problem.chunks(weight)])
    width = weight.shape[1]
    step = torch.empty_like(weight)
    count = max(1, CHUNK_ELEMENTS // width**2)
    for first in range(0, len(weight), count):
        some = slice(first, first + count)
        blocks = _blocks(problem, weight[some], log_sums)
        right = gradient[some].to(torch.float64)[:, :, None]
        diagonals = blocks.diagonal(dim1=1, dim2=2)
        scale = diagonals.mean(1) + size * torch.linalg.vector_norm(right, dim=(1, 2))
        # A class whose p are all 0 has neither curvature nor gradient.
        scale = torch.where(scale > LEAST_SCALE, scale, 1.0)[:, None, None]
        blocks.div_(scale)
        diagonals.add_(damping)
        factor = torch.linalg.cholesky_ex(blocks).L
        step[some] = torch.cholesky_solve(right / scale, factor).squeeze(2).mul_(-0.5)
    return step


def _blocks(problem: Problem, weight: Tensor, log_sums: Tensor) -> Tensor:
    """H_c of the classes with these weights, `[classes, d, d]`, float64.

    Each is a sum of x xᵀ over the tokens, so all are one product with the tokens' x xᵀ, flat.
    """
    width = weight.shape[1]
    blocks = weight.new_zeros(len(weight), width * width, dtype=torch.float64)
    size = max(1, min(CHUNK_ELEMENTS // width**2, problem.chunk_size))
    parts = zip(problem.parts(size), torch.split(log_sums, size), strict=True)
    for (hidden, _), log_sum in parts:
        log_p = (hidden @ weight.mT - log_sum[:, None]).clamp_(max=0).to(torch.float64)
        share = log_p.exp() * -log_p.expm1()  # p (1 - p), never negative
        wide = hidden.to(torch.float64)
        outer = wide[:, :, None] * wide[:, None, :]
        blocks.addmm_(share.mT, outer.flatten(1))
    return blocks.div_(len(problem.tokens)).view(-1, width, width)


def _backtrack(
    loss_at: Callable[[Tensor], Tensor], weight: Tensor, step: Tensor, loss: Tensor, slope: float
) -> tuple[Tensor, Tensor]:
    """The first of weight + step, weight + step / 2, ... whose loss is low enough, and that loss.

    `slope`, negative, is the inner product of gradient and step; `loss` is that of `weight`, which
    is returned if no length is short enough. Each attempt reads a loss on the host.
    """
    length, invisible = 1.0, ROUNDING * torch.finfo(weight.dtype).eps * float(loss)
    while True:
        promised = -length * slope
        wanted = SUFFICIENT * promised if promised > invisible else 0.0
        attempt = weight.add(step, alpha=length)
        found = loss_at(attempt)
        if bool(found <= loss - wanted):  # not for NaN
            return attempt, found
        if promised <= invisible:
            return weight, loss
        length /= 2
