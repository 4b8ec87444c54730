"""The state of a linear rule after any number of steps, by doubling: exact, no eigenvectors.

An eigendecomposition fails where the two eigenvalues of A meet, as momentum's do at
m = (1 - sqrt(x))^2. Doubling has no such place: t steps take log2(t) products of small matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusedstep.nqm.model import Array, Model, Places
from fusedstep.nqm.rules import LINEAR, Step


def _product(a: Array, b: Array) -> Array:
    """Matrices along the first two axes."""
    product: Array = np.einsum("ij...,jk...->ik...", a, b)
    return product


def _carried(change: Array, covariance: Array) -> Array:
    """A S A^T with A = I + change."""
    a = change.copy()
    for i in range(len(a)):
        a[i, i] += 1
    return _product(_product(a, covariance), a.swapaxes(0, 1))


@dataclass(frozen=True)
class Power:
    """Some number of steps at once.

    Attributes:
        change: A^t - I, [n, n, pairs, curvatures]. From t to 2 t it is 2 change + change^2: small
            entries keep their digits.
        covariance: S_t, [n, n, pairs, curvatures].
    """

    change: Array
    covariance: Array

    @staticmethod
    def of(step: Step) -> Power:
        """One step."""
        return Power(step.change, step.noise[:, None] * step.noise)

    def doubled(self) -> Power:
        """Twice as many steps."""
        covariance = self.covariance + _carried(self.change, self.covariance)
        return Power(2 * self.change + _product(self.change, self.change), covariance)

    def __getitem__(self, pairs: Places) -> Power:
        return Power(self.change[:, :, pairs], self.covariance[:, :, pairs])


@dataclass(frozen=True)
class State:
    """Where the coordinates are.

    Attributes:
        signal: A^t z(0) over theta(0), [n, pairs, curvatures].
        covariance: S_t, [n, n, pairs, curvatures].
    """

    signal: Array
    covariance: Array

    @staticmethod
    def start(rule: str, shape: tuple[int, ...]) -> State:
        """Before the first step, for [pairs, curvatures]."""
        z = np.array(LINEAR[rule].start)
        signal = np.broadcast_to(z[:, None, None], (len(z), *shape))
        return State(signal, np.zeros((len(z), len(z), *shape)))

    def after(self, power: Power) -> State:
        """Where `power`'s steps lead."""
        signal = self.signal + np.einsum("ij...,j...->i...", power.change, self.signal)
        return State(signal, power.covariance + _carried(power.change, self.covariance))

    def loss(self, rule: str, model: Model) -> Array:
        """The mean loss of each pair."""
        read = LINEAR[rule].read
        squares = self.signal[read] ** 2 + self.covariance[read, read]
        loss: Array = squares @ model.weight
        return loss

    def __getitem__(self, pairs: Places) -> State:
        return State(self.signal[:, pairs], self.covariance[:, :, pairs])
