"""Newton's minimising step with the Hessian's diagonal blocks alone: one d x d system a class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_number
from fusedstep.lm_head.line_search import backtrack
from fusedstep.lm_head.newton_arguments import make_problem
from fusedstep.lm_head.newton_result import NewtonResult
from fusedstep.lm_head.numerical import numerical
from fusedstep.lm_head.problem import CHUNK_ELEMENTS, Problem

LEAST_SCALE = 1e-290  # below it float64 loses digits


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
    """W_c -= t (H_c + λ_c I)⁻¹ G_c for each class c, with H_c = Xᵀ diag(p_c (1 - p_c)) X / N.

    G is the gradient of the mean cross-entropy. Its Hessian is at most twice its diagonal blocks,
    since diag(p) - p pᵀ is the Laplacian of a graph, but not at most the blocks themselves: whole
    steps may overshoot. So t starts at 1/2 and is halved until the loss falls by enough (Armijo):
    the loss never rises, from any start. The convergence is linear. The blocks cost
    N V d² + V d³ / 3 a step, and are made for some classes at a time.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite; it is not written.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, in [0, V).
        loss_constant: without influence: an irreducible part of the loss has no derivative.
        steps: how many, 0 or more.
        damping: above 0; λ_c is this times (the mean diagonal of H_c + |G_c| s), with s² the mean
            square of hidden's elements. It makes up for ranks below d, and bounds the steps where
            the loss is linear, far from the optimum.
        chunk_size: tokens whose logits `[chunk_size, V]` are held at a time; by default as many as
            make 2^23 logits.

    Returns:
        NewtonResult; computed in float64 where weight is float64, else in float32, the systems
        solved in float64.

    Raises:
        ValueError, TypeError: `newton_block_diagonal: <argument> must <property>, got <value>`.
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
            weight, loss = backtrack(problem.loss, weight, step, loss, slope)
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
    parts = zip(problem.parts(size), log_sums.split(size), strict=True)
    for (hidden, _), log_sum in parts:
        log_p = (hidden @ weight.mT - log_sum[:, None]).clamp_(max=0).to(torch.float64)
        share = log_p.exp() * -log_p.expm1()  # p (1 - p), never negative
        wide = hidden.to(torch.float64)
        outer = wide[:, :, None] * wide[:, None, :]
        blocks.addmm_(share.mT, outer.flatten(1))
    return blocks.div_(len(problem.tokens)).view(-1, width, width)
