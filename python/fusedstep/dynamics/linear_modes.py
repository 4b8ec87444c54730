"""Deep linear networks: the modes that gradient descent learns one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_count, require_rate


def deep_linear_modes(
    singular_values: Tensor | Sequence[float],
    initial: float | Tensor | Sequence[float],
    lr: float,
    steps: int,
    depth: int = 2,
) -> Tensor:
    """The strengths of a deep linear network's modes after every step of gradient descent.

    The network is W = W_depth ... W_1 and the loss 1/2 |W - S|_F^2, S with the singular values s:
    regression with half the sum of squares on inputs whose second moments are the identity. Where
    the layers start aligned with S (each layer's singular vectors are those of its neighbors, the
    outer ones those of S) and balanced (all have the same singular values a), they stay so, and the
    modes do not interact. A mode u = a^depth follows exactly

        a <- a + lr a^(depth - 1) (s - a^depth).

    A small mode waits, of two layers for log(s / u(0)) / (2 lr s) steps until it is half of s, and
    then rises quickly: large singular values come first, and the rank grows one by one.

    Args:
        singular_values: The target's singular values s, [k], each 0 or more.
        initial: Strengths u(0) of the modes of the whole product, 0 or more: one for all, or [k].
            Each layer starts with u(0)^(1 / depth).
        lr: Learning rate, above 0. Near its solution a mode is stable below
            2 / (depth s^(2 - 2 / depth)).
        steps: Number of steps, at least 0.
        depth: Number of layers, at least 1.

    Returns:
        The strengths [steps + 1, k] in float64, the first row at the start.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the rate diverges. The message is
            `deep_linear_modes: <argument> must <property>, got <value>`.

    Example:
        >>> modes = deep_linear_modes([4.0, 1.0], initial=0.01, lr=0.05, steps=60)
        >>> [round(u, 2) for u in modes[20].tolist()]  # the larger one is learned, the other waits
        [3.44, 0.07]

    Source: Saxe, McClelland and Ganguli 2014, arXiv 1312.6120, the decoupled modes of two and of
    more layers; here the discrete steps themselves, not their gradient flow.
    """
    name = "deep_linear_modes"
    s = _strengths(name, "singular_values", singular_values)
    start = _strengths(name, "initial", initial)
    if len(s) == 0:
        refuse(name, "singular_values", "have an entry", "none")
    if len(start) not in (1, len(s)):
        refuse(name, "initial", f"be one number or {len(s)} of them", len(start))
    rate = require_rate(name, "lr", lr)
    if rate == 0:
        refuse(name, "lr", "be above 0", lr)
    steps = require_count(name, "steps", steps)
    depth = require_count(name, "depth", depth, least=1)
    a = start.expand(len(s)) ** (1 / depth)
    modes = [a**depth]
    for _ in range(steps):
        a = a + rate * a ** (depth - 1) * (s - modes[-1])
        modes.append(a**depth)
    result = torch.stack(modes)
    if not bool(result.isfinite().all()):
        refuse(name, "lr", "be small enough that no mode diverges", lr)
    return result


def _strengths(function: str, argument: str, values: Any) -> Tensor:
    """One number or a 1-d sequence of them as a float64 vector, each finite and 0 or more."""
    try:
        strengths = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        refuse(function, argument, "be numbers", repr(values), TypeError)
    if strengths.dim() > 1:
        refuse(function, argument, "have at most one dimension", tuple(strengths.shape))
    for value in strengths.reshape(-1).tolist():
        require_rate(function, argument, value)
    return strengths.reshape(-1)
