"""Which pair of a rate and a momentum reaches a target first, and after how many steps."""

from __future__ import annotations

import numpy as np

from fusedstep.checks import refuse
from fusedstep.nqm import adam
from fusedstep.nqm.affine import Power, State
from fusedstep.nqm.model import Array, Model
from fusedstep.nqm.rules import limits, step

_DOUBLINGS = 53  # of a step: float64 counts no further
_TOGETHER = 2**20  # pairs times curvatures whose matrices are in memory at once


def fastest(
    function: str, rule: str, model: Model, target: float, lrs: Array, momenta: Array
) -> tuple[int, int]:
    """The first step with a loss below the target, and the place of its pair.

    Refuses a grid on which all rates diverge or none reaches the target.
    """
    limit = limits(rule, model, momenta)
    stable = np.flatnonzero(lrs < limit)
    if len(stable) == 0:
        most = limit.max()
        refuse(function, "lrs", f"have a rate below {most:.6g}, the limit of stability", lrs.min())
    lrs, momenta = lrs[stable], momenta[stable]
    if rule == "adam":
        found, least = adam.race(model, lrs, target), adam.final_losses(model, lrs).min()
    else:
        found, least = _race(rule, model, lrs, momenta, target)
    if found is None and least < target:
        must = f"have one that reaches the target within {adam.MOST_STEPS} steps"
        refuse(function, "lrs", must, lrs.max())
    if found is None:
        must = f"be above {least:.6g}, the least loss that these rates reach"
        refuse(function, "target", must, target)
    return found[0], int(stable[found[1]])


def _race(
    rule: str, model: Model, lrs: Array, momenta: Array, target: float
) -> tuple[tuple[int, int] | None, float]:
    """The first step and its pair's place, or None and the least loss; in parts that fit memory."""
    best, least = None, np.inf
    together = max(1, _TOGETHER // len(model.h))
    for places in np.split(np.arange(len(lrs)), range(together, len(lrs), together)):
        one = Power.of(step(rule, model, lrs[places], momenta[places]))
        found, lowest = _first(rule, model, one, target, best[0] if best else 2**_DOUBLINGS + 1)
        least = min(least, lowest)
        if found is not None:
            best = found[0], int(places[found[1]])
    return best, least


def _first(
    rule: str, model: Model, one: Power, target: float, before: int
) -> tuple[tuple[int, int] | None, float]:
    """The first step, less than `before`, with a loss below the target, and the pair's place.

    Doubling finds the first power of two at which some pair is below; only such pairs can have been
    first. Bisection then goes back through their powers, again keeping those that are below.
    None, with the least loss seen at a power of two, where no pair gets there in time.
    """
    start = State.start(rule, one.change.shape[2:])
    power, least = one, np.inf
    for doublings in range(_DOUBLINGS + 1):
        losses = start.after(power).loss(rule, model)
        least = min(least, float(losses.min()))
        if least < target:
            break
        if 2**doublings >= before - 1:
            return None, least
        power = power.doubled()
    left = np.flatnonzero(losses < target)
    powers = [one[left]]
    for _ in range(doublings - 1):
        powers.append(powers[-1].doubled())
    state, done = start[left], 0
    for exponent in reversed(range(doublings)):
        ahead = state.after(powers[exponent])
        below = np.flatnonzero(ahead.loss(rule, model) < target)
        if len(below):
            left, state = left[below], state[below]
            powers = [power[below] for power in powers[:exponent]]
        else:
            state, done = ahead, done + 2**exponent
    return ((done + 1, int(left[0])) if done + 1 < before else None), least
