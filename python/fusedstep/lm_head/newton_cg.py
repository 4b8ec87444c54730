"""Newton's minimising step by conjugate gradients: the Hessian is applied, never made."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedstep.checks import require_count, require_number
from fusedstep.lm_head.line_search import backtrack
from fusedstep.lm_head.newton_arguments import make_problem
from fusedstep.lm_head.newton_result import NewtonResult
from fusedstep.lm_head.numerical import numerical
from fusedstep.lm_head.problem import Problem
from fusedstep.lm_head.ridge import Spectrum, spectrum

LEAST_CURVATURE = 1e-3  # of the mean: what a class that is never expected has at least


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
    """W += t S, where (H + λ I) S = -G is solved just well enough and t by a line search.

    G and H are gradient and Hessian of the mean cross-entropy. Conjugate gradients stop at a
    residual of min(1/2, √|G|) |G| (Eisenstat and Walker 1996), so that few products are spent far
    from the optimum, and the convergence near it is faster than linear. A product of H costs
    6 N V d: with A = X Uᵀ, H U = (P ∘ (A - rowsum(P ∘ A)))ᵀ X / N. They are preconditioned by
    diag(τ) ⊗ (XᵀX / N) + λ I, τ the mean of p (1 - p) of each class. t is halved from 1 until the
    loss falls by enough (Armijo), so the loss never rises, from any start.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite; it is not written.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, in [0, V).
        loss_constant: without influence: an irreducible part of the loss has no derivative.
        steps: how many, 0 or more.
        max_products: products of H in a step, 1 or more.
        damping: 0 or more; λ is this times s |G|, with s² the mean square of hidden's elements. It
            shortens the directions in which the loss is nearly linear, far from the optimum or
            where there is none, and vanishes near one (Doikov 2023, "Minimizing
            quasi-self-concordant functions by gradient regularization of Newton method").
        chunk_size: tokens whose logits `[chunk_size, V]` are held at a time; by default as many as
            make 2^23 logits.

    Returns:
        NewtonResult; computed in float64 where weight is float64, else in float32.

    Raises:
        ValueError, TypeError: `newton_cg: <argument> must <property>, got <value>`.
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
            weight, loss = backtrack(problem.loss, weight, step, loss, slope)
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

    Without λ it would be off by orders of magnitude for the many classes that are hardly expected:
    their τ is far below λ.
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
    least = math.sqrt(torch.finfo(weight.dtype).eps)  # more digits than this the loss cannot show
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
