"""The temperature of a last layer: the factor of its logits with the least cross-entropy."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.lm_head.batch import require_scale
from fusedstep.lm_head.problem import Problem, make_problem
from fusedstep.lm_head.softmax import directions_, rows_for_logits
from fusedstep.switches import numerical

RATIO = 8.0  # of trials while only 0 or infinity bounds the minimum, at first
MOST_PASSES = 100  # bisection of the logarithm alone needs fewer


class Temperature(NamedTuple):
    """A factor for logits and the loss with it.

    Attributes:
        value: The factor t, the inverse of what is often called the temperature.
        loss: The mean cross-entropy of t * hidden @ weight.T, in nats.
    """

    value: float
    loss: float


@numerical
def fit_temperature(
    hidden: Tensor, tokens: Tensor, weight: Tensor, *, scale: float = 1.0
) -> Temperature:
    """Finds the scalar t that minimizes the mean cross-entropy of t * hidden @ weight.T.

    Least squares on one-hot targets gives about `scale` times the probability of each token. These
    numbers rank the tokens, but only a fitted t makes them useful as logits. With p = softmax(t z),
    the derivatives of a token's loss in t are E_p[z] - z_y and Var_p[z], so the loss is convex.
    Newton's method finds its minimum, with bisection if a step leaves the interval that must
    contain it. A pass over the tokens costs a product of N V d; 5 to 12 passes are usual. Logits
    are computed for some tokens at a time: at most 2^23 of them, twice.

    Args:
        hidden: `[N, d]` or `[B, T, d]`, float32, float64, bfloat16 or float16, finite. Use tokens
            that the weight was not fitted to: training tokens make t too large.
        tokens: `[N]` or `[B, T]`, int64, from 0 to V - 1: the token after each hidden vector.
        weight: `[V, d]`, of any of these dtypes, finite; for example from `LeastSquares.solve`.
        scale: The scale of `LeastSquares`, finite and not 0. The search starts at log(V) / scale,
            and t has the sign of scale. Its size has no effect on the result beyond rounding.

    Returns:
        Temperature(value, loss), both floats. Computed in float64 if weight is float64, else in
        float32; `value` is exact to about 1e-10 or 1e-5 of itself. In two cases no t is best:

        - If the loss grows with every t of that sign, as for logits that rank the tokens in reverse
          or are all equal but for rounding, value is 0 and loss is log(V).
        - If the loss decreases for every larger t, because no token has a rival with a higher
          logit, value is a finite t at which every token's probability is at its limit to float64's
          roundoff, and loss is that limit: 0 if no rival has the same logit either.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has an invalid value, or logits overflow. The message is
            `fit_temperature: <argument> must <property>, got <value>`.

    Example:
        >>> weight = torch.tensor([[1.0], [0.0]])  # logits (x, 0) for the hidden state x
        >>> hidden, tokens = torch.ones(4, 1), torch.tensor([0, 0, 0, 1])
        >>> value, loss = fusedstep.lm_head.fit_temperature(hidden, tokens, weight)
        >>> round(value, 4), round(loss, 4)  # log(3), for a chance of 3 / 4
        (1.0986, 0.5623)

    Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger 2017, "On calibration of modern neural
    networks", arXiv 1706.04599, section 4.2.
    """
    function = "fit_temperature"
    scale = require_scale(function, scale)
    problem = make_problem(function, weight, hidden, tokens)
    sign = math.copysign(1.0, scale)
    loss, slope, _ = _derivatives(problem, 0.0)
    if not math.isfinite(slope):
        refuse(function, "weight", "give finite logits with hidden", slope)
    if not sign * slope < -_noise(problem):
        return Temperature(0.0, loss)
    limit = _limit(problem, sign)
    if limit is not None:
        return limit
    return _search(problem, sign, math.log(len(problem.weight)) / abs(scale))


def _noise(problem: Problem) -> float:
    """The slope that the rounding of equal logits can make: products differ between columns."""
    dtype = problem.weight.dtype
    longest = torch.linalg.vector_norm(problem.weight, dim=1).amax()
    usual = torch.linalg.vector_norm(problem.hidden, dim=1, dtype=dtype).mean()
    return torch.finfo(dtype).eps * float(longest) * float(usual)


def _search(problem: Problem, sign: float, start: float) -> Temperature:
    """Newton's method in |t|, kept inside the interval that holds the minimum."""
    enough = 1e-10 if problem.weight.dtype == torch.float64 else 1e-5
    size, low, high, last_step = start, 0.0, math.inf, math.inf
    ratio = RATIO
    for _ in range(MOST_PASSES):
        loss, slope, curvature = _derivatives(problem, sign * size)
        slope *= sign
        if slope < 0:
            low = size
        else:
            high = size
        step = -slope / curvature if 0 < curvature < math.inf else math.inf
        if abs(step) <= enough * size:
            break
        following = size + step
        if high == math.inf:
            following, ratio = min(following, ratio * size), min(ratio * ratio, 1e100)
        elif not (low < following < high and abs(step) < 0.5 * last_step):
            if low > 0:
                following = math.sqrt(low * high)
            else:
                following, ratio = high / ratio, min(ratio * ratio, 1e100)
        last_step = abs(following - size)
        if last_step <= enough * size:
            break
        size = following
    return Temperature(sign * size, loss)


def _derivatives(problem: Problem, t: float) -> tuple[float, float, float]:
    """The mean cross-entropy at t, and its first two derivatives in t.

    With u the logits less the token's own, q the softmax without the token, and miss = 1 - p_y, the
    derivatives are miss E_q[u] and miss (E_q[u²] - miss E_q[u]²): nothing cancels where p_y is
    near 1.
    """
    totals = torch.zeros(3, dtype=torch.float64, device=problem.weight.device)
    scratch = rows_for_logits(min(problem.chunk_size, len(problem.tokens)), problem.weight)
    for _, tokens, u in problem.chunks(problem.weight):
        u -= u.gather(1, tokens[:, None])
        q = torch.mul(u, t, out=scratch[: len(u)])
        rows = directions_(q, tokens)  # q, and -1 at the token, where u is 0
        first = q.mul_(u).sum(1, dtype=torch.float64)
        second = q.mul_(u).sum(1, dtype=torch.float64)
        slope = rows.miss * first
        curvature = rows.miss * second - slope.square()
        totals += torch.stack([rows.loss.sum(), slope.sum(), curvature.sum()])
    loss, slope, curvature = (totals / len(problem.tokens)).tolist()
    return loss, slope, curvature


def _limit(problem: Problem, sign: float) -> Temperature | None:
    """The limit of the loss as t grows, if it falls all the way: no rival is ahead."""
    ties = torch.zeros((), dtype=torch.float64, device=problem.weight.device)
    gap = math.inf
    for _, tokens, u in problem.chunks(problem.weight):
        u -= u.gather(1, tokens[:, None])
        u *= sign
        if bool((u > 0).any()):
            return None
        ties += (u == 0).sum(1).log().sum(dtype=torch.float64)  # the token itself among them
        gap = min(gap, float(-torch.where(u < 0, u, -math.inf).amax()))
    # With V rivals at this distance, what is left of their probability is float64's roundoff.
    reach = math.log(len(problem.weight)) - math.log(torch.finfo(torch.float64).eps / 2)
    value = min(reach / gap, torch.finfo(torch.float64).max)
    return Temperature(sign * value, float(ties) / len(problem.tokens))
