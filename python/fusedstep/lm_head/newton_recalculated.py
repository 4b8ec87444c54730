"""Newton's root-finding steps, one token after another, each at the weights after the last."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedstep.checks import require_bool, require_count
from fusedstep.linalg.numerics import whole_gram
from fusedstep.lm_head.problem import (
    NewtonResult,
    Problem,
    make_problem,
    square_norms,
)
from fusedstep.lm_head.softmax import logits_of, root_steps_, rows_for_logits, token_losses
from fusedstep.switches import numerical

# Tokens that one op takes in turn. Besides V exponentials, each reads the steps before it in the
# run, 2 RUN V bytes of float32 on average, which stay in the cache; products bring later tokens up
# to date. Longer runs read more than these products: with V = 32000, a block of 128 takes one
# thread 10 ms in runs of 8 or 16, 15 ms in runs of 32, 24 ms in runs of 64.
RUN = 16


@numerical
def newton_components_recalculated(
    weight: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    *,
    loss_constant: float = 0.0,
    uphill: bool = True,
    steps: int = 1,
    block_size: int = 128,
    chunk_size: int | None = None,
) -> NewtonResult:
    """For each token in turn, W -= (l - c) g⁺ᵀ, with l its loss and g its gradient at that W.

    The tokens come in the published order: all first positions of `[B, T, d]`, then all second
    ones; the rows of `[N, d]` in turn. This is also known as Polyak's or Kaczmarz's step for the
    equations l = c. One step is one pass over all tokens.

    hidden does not depend on W, so the logits of a token follow from those at older weights and the
    steps D in between: z_n = W x_n - sum over i < n of (x_n · x_i) D_i. Within a block of tokens W
    stays the same, and two products of block_size V d then update logits and weights. The iterates
    are those of the loop, at 12 V d / block_size bytes of float32 per token, not 12 V d. If all
    tokens are one block, a step costs one such product, plus one before the first step.

    Args:
        weight: `[V, d]`, float32, float64, bfloat16 or float16, finite. It is not changed.
        hidden: `[N, d]` or `[B, T, d]`, of any of these dtypes, finite.
        tokens: `[N]` or `[B, T]`, int64, from 0 to V - 1: the token after each hidden vector.
        loss_constant: Loss c in nats, finite.
        uphill: True, as published: a token whose loss is below c takes a step that raises its loss;
            the step grows without bound as the token becomes certain. False: such a token takes no
            step.
        steps: Number of passes over all tokens, 0 or more.
        block_size: Number of tokens in a block, 1 or more, with `[block_size, V]` logits; two such
            arrays if all tokens are one block.
        chunk_size: Number of tokens whose logits are held at a time for the losses between passes.
            Default: as many as give 2^23 logits.

    Returns:
        NewtonResult; computed in float64 if weight is float64, else in float32.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value. The message is
            `newton_components_recalculated: <argument> must <property>, got <value>`.

    Example:
        >>> weight, tokens = torch.zeros(3, 2), torch.tensor([0, 1, 2])
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> solve = fusedstep.lm_head.newton_components_recalculated
        >>> result = solve(weight, hidden, tokens, steps=3, loss_constant=0.8)
        >>> [round(loss, 2) for loss in result.losses.tolist()]
        [1.1, 0.92, 0.87, 0.85]

    Source: "Language Mixers III: Optimization", the steps of one token after another.
    Also B. T. Polyak 1969, "Minimization of unsmooth functionals", and S. Kaczmarz 1937.
    """
    function = "newton_components_recalculated"
    require_bool(function, "uphill", uphill)
    require_count(function, "block_size", block_size, 1)
    problem = make_problem(
        function, weight, hidden, tokens, loss_constant, steps, chunk_size, position_major=True
    )
    if len(problem.tokens) <= block_size:
        return _in_one_block(problem, uphill)
    weight = problem.weight
    losses = [problem.loss(weight)]
    for _ in range(steps):
        for hidden, tokens in problem.parts(block_size):
            block = _Block(hidden, tokens, problem.loss_constant, uphill)
            taken = block.steps_(logits_of(hidden, weight))
            weight.addmm_(taken.mT, hidden, alpha=-1)
        losses.append(problem.loss(weight))
    return NewtonResult(weight, torch.stack(losses))


def _in_one_block(problem: Problem, uphill: bool) -> NewtonResult:
    """The same for a single block: the losses follow from the first logits too."""
    ((hidden, tokens),) = problem.parts(len(problem.tokens))
    block = _Block(hidden, tokens, problem.loss_constant, uphill)
    logits = logits_of(hidden, problem.weight)
    scratch = rows_for_logits(len(tokens), problem.weight)
    losses = [token_losses(logits, tokens).mean()]
    for _ in range(problem.steps):
        taken = block.steps_(scratch.copy_(logits))
        problem.weight.addmm_(taken.mT, hidden, alpha=-1)
        logits.addmm_(block.gram, taken, alpha=-1)
        losses.append(token_losses(logits, tokens).mean())
    return NewtonResult(problem.weight, torch.stack(losses))


class _Block:
    """The steps of one token after another, without reading the weights."""

    def __init__(self, hidden: Tensor, tokens: Tensor, loss_constant: float, uphill: bool) -> None:
        self.tokens, self.loss_constant, self.uphill = tokens, loss_constant, uphill
        self.squares = square_norms(hidden)
        self.gram = whole_gram(hidden.mT).to(hidden.dtype)

    def steps_(self, logits: Tensor) -> Tensor:
        """Writes D over the logits `[n, V]`: token i changes the weights by -D_i x_iᵀ."""
        self._solve_(logits, 0, len(self.tokens))
        return logits

    def _solve_(self, logits: Tensor, first: int, end: int) -> None:
        """Rows first to end, whose logits include all steps before `first`.

        It works by halves, so that each row of D is read log(n) times, not n times.
        """
        rows = slice(first, end)
        if end - first <= RUN:
            tokens, squares, gram = self.tokens[rows], self.squares[rows], self.gram[rows, rows]
            root_steps_(logits[rows], tokens, squares, self.loss_constant, self.uphill, gram)
            return
        middle = (first + end) // 2
        self._solve_(logits, first, middle)
        early, late = slice(first, middle), slice(middle, end)
        logits[late].addmm_(self.gram[late, early], logits[early], alpha=-1)
        self._solve_(logits, middle, end)
