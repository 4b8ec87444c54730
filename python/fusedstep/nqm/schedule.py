"""The piecewise constant schedule of rates that reaches a target loss in the fewest steps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fusedstep.checks import require_count
from fusedstep.nqm.model import Array, Model, make_model, require_target
from fusedstep.nqm.race import fastest

_FLOOR = 1e-12  # the least rate, over the largest
_SERIES = 3e-3  # of n (1 - q): below it geometric sums are taken from their series


class Schedule(NamedTuple):
    """Rates that hold from one boundary to the next.

    `fusedstep.schedules.piecewise_constant(step, boundaries=s.boundaries, values=s.lrs)` is the
    rate of a step.

    Attributes:
        steps: The length of the schedule, of all its pieces together.
        lrs: A rate for each piece.
        boundaries: The first step of each piece but the first.
    """

    steps: int
    lrs: tuple[float, ...]
    boundaries: tuple[int, ...]


def optimal_schedule(
    *,
    batch_size: float,
    pieces: int = 50,
    target: float = 0.01,
    power: float = 0.0,
    dim: int = 10_000,
    bins: int | None = 100,
) -> Schedule:
    """The schedule of SGD's rate that reaches a target loss in the fewest steps.

    For a number of steps, cut into pieces of equal length (to a step), L-BFGS minimizes the final
    mean loss of the noisy quadratic model over the logarithms of the rates, with exact gradients.
    No rate exceeds 2 over the largest curvature, so that none diverges. Bisection then finds the
    number of steps; the best constant rate, which is a schedule too, is where it starts.

    The problem is not convex, but where L-BFGS starts makes no difference in the cases tested.

    Args:
        batch_size: B, at least 1. Infinite means no noise.
        pieces: Number of pieces, at least 1; as many as steps if these are fewer.
        target: Mean loss to reach, above 0 and below the one before the first step.
        power: p of the fixed preconditioner H^p, from 0 to 1. The rates are those before it.
        dim: Number of coordinates; their curvatures are 1 / i.
        bins: Number of geometric bins of the curvatures, at least 2, or None for all of them.

    Returns:
        `Schedule(steps, lrs, boundaries)`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range. The message is
            `optimal_schedule: <argument> must <property>, got <value>`.
        ModuleNotFoundError: SciPy is not installed: `pip install 'fusedstep[nqm]'`.

    Example:
        >>> schedule = optimal_schedule(batch_size=1024, pieces=4)
        >>> len(schedule.lrs), len(schedule.boundaries), schedule.steps < 10_609
        (4, 3, True)
        >>> fusedstep.schedules.piecewise_constant(
        ...     0, boundaries=schedule.boundaries, values=schedule.lrs
        ... ) == schedule.lrs[0]
        True

    Source: Zhang et al. 2019, equation 3 and the footnote on page 7, arXiv 1907.04164.
    """
    name = "optimal_schedule"
    pieces = require_count(name, "pieces", pieces, least=1)
    model = make_model(name, batch_size=batch_size, power=power, dim=dim, bins=bins)
    target = require_target(name, target, model.initial_loss)
    minimize = _scipy_minimize(name)

    rates = 2 / model.sharpest * np.logspace(-12, 0, 120, endpoint=False)
    high, place = fastest(name, "sgd", model, target, rates, np.zeros_like(rates))
    low, logs = least_steps(model, target) - 1, np.full(1, math.log(rates[place]))
    while high - low > 1:
        steps = (low + high) // 2
        loss, better = _minimized(minimize, model, _lengths(steps, pieces), logs)
        if loss < target:
            high, logs = steps, better
        else:
            low = steps
    lengths = _lengths(high, pieces)
    lrs = np.exp(_resized(logs, len(lengths)))
    return Schedule(high, tuple(lrs.tolist()), tuple(np.cumsum(lengths)[:-1].tolist()))


def least_steps(model: Model, target: float) -> int:
    """A bound: no rates take SGD to the target in fewer steps, were they chosen for each h alone.

    A gradient is a measurement of h theta with variance h / B. After t of them the mean square
    error of the best estimate of theta is 1 / (1 + t h B), which for long runs makes the loss
    dim / (2 t B).
    """
    low, high = 0, 1
    while _estimate(model, high) >= target and high < 2**53:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _estimate(model, middle) < target else (middle, high)
    return high


def _estimate(model: Model, steps: int) -> float:
    return float((model.weight / (1 + steps * model.h * model.batch_size)).sum())


def _lengths(steps: int, pieces: int) -> Array:
    """Pieces of equal length, to a step; none is empty."""
    ends = np.arange(min(pieces, steps) + 1) * steps // min(pieces, steps)
    return np.diff(ends)


def _resized(logs: Array, pieces: int) -> Array:
    """The same rates over the run for another number of pieces."""
    at = (np.arange(pieces) + 0.5) / pieces
    return np.interp(at, (np.arange(len(logs)) + 0.5) / len(logs), logs)


def _minimized(minimize: Any, model: Model, lengths: Array, logs: Array) -> tuple[float, Array]:
    """The least final loss that L-BFGS finds from these logarithms of rates on, and its own."""
    most = math.log(2 / model.sharpest)
    found = minimize(
        lambda logs: final_loss(model, lengths, logs),
        np.minimum(_resized(logs, len(lengths)), most),
        jac=True,
        method="L-BFGS-B",
        bounds=[(most + math.log(_FLOOR), most)] * len(lengths),
        options={"maxiter": 500, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-9},
    )
    return float(found.fun), np.asarray(found.x)


def final_loss(model: Model, lengths: Array, logs: Array) -> tuple[float, Array]:
    """The mean loss after the last piece, and its gradient with respect to the logarithms.

    In a piece of n steps at one rate the mean square s of a coordinate becomes
    q^n s + a^2 c G(q), with q = (1 - x)^2 and G(q) = 1 + q + ... + q^(n - 1): equation 3, which has
    (1 - q^n) / (1 - q) for G and would divide by zero at x = 2.
    """
    lrs, n = np.exp(logs)[:, None], lengths[:, None].astype(np.float64)
    x = lrs * (model.h * model.scale)
    left = x * (2 - x)  # 1 - q, with all its digits
    kept, before, total, slope = _geometric(left, n)
    noise = (lrs * model.noise) ** 2

    squares = [np.ones_like(model.h)]
    for decay, added in zip(kept, noise * total, strict=True):
        squares.append(decay * squares[-1] + added)
    loss = float(model.weight @ squares[-1])

    # Backwards: `adjoint` is the derivative of the loss by the mean squares after a piece.
    # By log(lr), q has the derivative -2 x (1 - x) and the noise twice itself.
    turned = -2 * x * (1 - x)
    adjoint, gradient = model.weight, np.empty(len(lrs))
    for i in reversed(range(len(lrs))):
        by_kept = n[i] * before[i] * squares[i]
        by_log = turned[i] * (by_kept + noise[i] * slope[i]) + 2 * noise[i] * total[i]
        gradient[i] = adjoint @ by_log
        adjoint = adjoint * kept[i]
    return loss, gradient


def _geometric(left: Array, n: Array) -> tuple[Array, Array, Array, Array]:
    """q^n, q^(n - 1), G = (1 - q^n) / (1 - q), dG/dq = (G - n q^(n - 1)) / (1 - q); q = 1 - left.

    Where n (1 - q) is small the difference in dG/dq would lose its digits: both are then taken from
    their series in 1 - q, whose coefficients are binomials.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # q = 0, and 0^0 for n = 1
        log = np.log1p(-left)
        kept, before = np.exp(n * log), np.where(n == 1, 1.0, np.exp((n - 1) * log))
    two = n * (n - 1) / 2
    three = two * (n - 2) / 3
    four = three * (n - 3) / 4
    five = four * (n - 4) / 5
    few = n * left < _SERIES
    divisor = np.where(few, 1.0, left)
    total = np.where(few, n - left * (two - left * (three - left * four)), (1 - kept) / divisor)
    slope = np.where(
        few,
        two - left * (2 * three - left * (3 * four - left * 4 * five)),
        (total - n * before) / divisor,
    )
    return kept, before, total, slope


def _scipy_minimize(function: str) -> Any:
    """SciPy's minimize; SciPy is an optional dependency."""
    try:
        from scipy.optimize import minimize
    except ModuleNotFoundError as missing:
        message = f"{function}: needs SciPy: pip install 'fusedstep[nqm]'"
        raise ModuleNotFoundError(message, name="scipy") from missing
    return minimize
