"""Adam in the noisy quadratic model: divided by the root of the gradient's own mean square.

The preconditioner is 1 / sqrt(E g^2), E g^2 = h^2 E theta^2 + h / B: Adam without momentum whose
second moment is always up to date. It moves with the state, so the dynamics are not linear and
have no closed form: steps are simulated one by one, in float64, for all curvatures and rates
together. With y = h B E theta^2 (signal over noise) and k = lr sqrt(B h), a step is

    y' = y + k^2 - 2 k y / sqrt(1 + y)

which comes to rest at y = k u / 2, u = k / 4 + sqrt(k^2 / 16 + 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fusedstep.nqm.model import Array, Model

MOST_STEPS = 2**24  # of a simulation: minutes
_BLOCK = 256  # steps between two looks at the loss
_TOGETHER = 8  # rates that are simulated together


def _strides(model: Model, lrs: Array) -> Array:
    """k, [rates, curvatures]."""
    k: Array = lrs[:, None] * np.sqrt(model.batch_size * model.h)
    return k


def _weight(model: Model) -> Array:
    """The loss is `weight` times y, summed."""
    return 0.5 * model.count / model.batch_size


def final_losses(model: Model, lrs: Array) -> Array:
    """The loss of each rate after infinitely many steps."""
    k = _strides(model, lrs)
    loss: Array = (k / 2 * (k / 4 + np.sqrt(k * k / 16 + 1))) @ _weight(model)
    return loss


class Simulation:
    """All curvatures at some rates, from the first step on."""

    def __init__(self, model: Model, lrs: Array) -> None:
        self.k = _strides(model, lrs)
        self.y = np.broadcast_to(model.h * model.batch_size, self.k.shape).copy()
        self.weight = _weight(model)

    @property
    def losses(self) -> Array:
        """Of each rate, now."""
        losses: Array = self.y @ self.weight
        return losses

    def run(self, steps: int) -> None:
        """That many steps, in place."""
        y, twice, squared, root, change = (
            self.y,
            2 * self.k,
            self.k**2,
            *np.empty((2, *self.y.shape)),
        )
        for _ in range(steps):
            np.add(y, 1, out=root)
            np.sqrt(root, out=root)
            np.divide(y, root, out=change)
            np.multiply(change, twice, out=change)
            np.subtract(squared, change, out=change)
            np.add(y, change, out=y)


def race(model: Model, lrs: Array, target: float) -> tuple[int, int] | None:
    """The first step with a loss below the target and the place of its rate; None for never.

    Rates that come to rest at the target or above are left out, and so are those whose loss even
    without any noise, y' >= (1 - 2 k) y, is above the target when the best so far is done.
    """
    reach = np.flatnonzero(final_losses(model, lrs) < target)
    order = reach[np.argsort(-lrs[reach], kind="stable")]
    best: tuple[int, int] | None = None
    for places in np.split(order, range(_TOGETHER, len(order), _TOGETHER)):
        if best is not None:
            places = places[_least_losses(model, lrs[places], best[0]) < target]
        if len(places) == 0:
            continue
        found = _first(Simulation(model, lrs[places]), target, best[0] if best else MOST_STEPS + 1)
        if found is not None:
            best = found[0], int(places[found[1]])
    return best


def _least_losses(model: Model, lrs: Array, steps: int) -> Array:
    """Lower bounds of the losses after so many steps."""
    kept = np.clip(1 - 2 * _strides(model, lrs), 0, 1) ** steps
    losses: Array = (kept * model.h * model.batch_size) @ _weight(model)
    return losses


def _first(simulation: Simulation, target: float, before: int) -> tuple[int, int] | None:
    """The first step, less than `before`, with a loss below the target, and the rate's place."""
    done = 0
    while done < before - 1:
        block, kept = min(_BLOCK, before - 1 - done), simulation.y.copy()
        simulation.run(block)
        if (simulation.losses < target).any():
            simulation.y = kept
            return _walk(simulation, target, done, block)
        done += block
    return None


def _walk(simulation: Simulation, target: float, done: int, block: int) -> tuple[int, int]:
    """The same within a block at whose end a loss is below the target."""
    for step in range(done + 1, done + block + 1):
        simulation.run(1)
        below = np.flatnonzero(simulation.losses < target)
        if len(below):
            return step, int(below[0])
    raise AssertionError("the block ends below the target")


def curve(model: Model, lr: float, counts: list[int]) -> Iterator[float]:
    """The loss after each of these numbers of steps, which ascend."""
    simulation, done = Simulation(model, np.array([lr])), 0
    for count in counts:
        simulation.run(count - done)
        done = count
        yield float(simulation.losses[0])
