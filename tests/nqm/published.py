"""What the paper and its notebook publish, as oracles: equations 3, 21 and 38, and the table."""

from __future__ import annotations

import mpmath
import numpy as np

LOW = 0.01  # the target
BINS = 100


def binned(dim: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """The curvatures in bins and their numbers, counted one by one."""
    exact, h = 1 / np.arange(1, dim + 1), np.geomspace(1, 1 / dim, BINS)
    count, at = np.zeros(BINS), 0
    for one in exact:
        while one < h[at]:
            at += 1
        count[at] += 1
    return h, count


def matrices(rule: str, x: np.ndarray, m: float) -> tuple[np.ndarray, np.ndarray, int, float]:
    """Equation 21 or 38 for each x: transitions [x, 3, 3], the start, what is read, its factor."""
    one, zero = np.ones_like(x), np.zeros_like(x)
    if rule == "momentum":
        rows = [
            [(1 - x) ** 2, m**2 * one, 2 * m * (1 - x)],
            [x**2, m**2 * one, -2 * m * x],
            [-x * (1 - x), m**2 * one, m * (1 - 2 * x)],
        ]
        return np.moveaxis(np.array(rows), 2, 0), np.array([1.0, 0, 0]), 0, 1.0
    rows = [
        [(1 - x) ** 2, zero, zero],
        [(1 - x) ** 2, m**2 * one, 2 * m * (1 - x)],
        [(1 - x) ** 2, zero, m * (1 - x)],
    ]
    start = np.array([1, 1 / (1 - m) ** 2, 1 / (1 - m)])
    return np.moveaxis(np.array(rows), 2, 0), start, 1, (1 - m) ** 2


def losses(
    rule: str,
    h: np.ndarray,
    count: np.ndarray,
    batch_size: float,
    lr: float,
    m: float,
    steps: int,
    power: float = 0.0,
) -> np.ndarray:
    """The mean loss after 0, 1, ... steps, by the paper's recursion."""
    a = lr / h**power
    noise = a**2 * h / batch_size
    found = np.empty(steps + 1)
    if rule == "sgd":
        s = np.ones_like(h)
        for t in range(steps + 1):
            found[t] = 0.5 * (count * h * s).sum()
            s = (1 - a * h) ** 2 * s + noise
        return found
    transition, start, read, factor = matrices(rule, a * h, m)
    state = np.tile(start, (len(h), 1))
    for t in range(steps + 1):
        found[t] = 0.5 * factor * (count * h * state[:, read]).sum()
        state = np.einsum("ijk,ik->ij", transition, state) + noise[:, None]
    return found


def with_the_notebooks_term(batch_size: float, lr: float, power: float, steps: int) -> float:
    """The notebook's equation 3, which adds 1e-8 to 1 - b so as not to divide by zero."""
    h, count = binned()
    a = lr / h**power
    b = (1 - a * h) ** 2
    rest = a**2 * h / batch_size / (1 - b + 1e-8)
    return float(0.5 * (count * h * (rest + b**steps * (1 - rest))).sum())


def momentum_in_many_digits(batch_size: int, lr: float, m: float, steps: int) -> mpmath.mpf:
    """The mean loss in 40 digits, by the binary digits of the number of steps."""
    with mpmath.workdps(40):
        loss = mpmath.mpf(0)
        for curvature, number in zip(*binned(), strict=True):
            h, a = mpmath.mpf(float(curvature)), mpmath.mpf(lr)
            A = mpmath.matrix([[1 - a * h, m], [-a * h, m]])
            b = mpmath.matrix([a, a])
            z, S, Q, left = mpmath.matrix([1, 0]), mpmath.zeros(2), b * b.T * h / batch_size, steps
            while left:
                if left & 1:
                    z, S = A * z, A * S * A.T + Q
                Q, A, left = Q + A * Q * A.T, A * A, left >> 1
            loss += int(number) * h / 2 * (z[0] ** 2 + S[0, 0])
        return loss
