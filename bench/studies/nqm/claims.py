"""The claims of the paper, each a function that says whether it holds here, with the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from bench.studies.claims import Claim
from bench.studies.nqm.sweep import POWERS, Found


def momentum_does_not_help_at_small_batches(found: Found) -> Claim:
    gain = _gain(found, "SGD", "momentum")
    small, large = min(gain), max(gain)
    return Claim(
        "Momentum does not help at small batches, and does at large ones",
        gain[small] < 1.25 and gain[large] > 10,
        f"SGD takes {gain[small]:.2f} times its steps at B = {small}, "
        f"{gain[large]:.0f} times at B = {large}",
    )


def momentum_extends_perfect_scaling(found: Found) -> Claim:
    sgd, momentum = found.critical("SGD"), found.critical("momentum")
    return Claim(
        "Momentum extends perfect scaling to about 30 times larger batches",
        20 < momentum / sgd < 45,
        f"critical batch size {sgd:.0f} for SGD, {momentum:.0f} with momentum: "
        f"{momentum / sgd:.0f} times",
    )


def preconditioning_helps_at_every_batch_size(found: Found) -> Claim:
    least = [min(_gain(found, less, more).values()) for less, more in pairwise(POWERS)]
    return Claim(
        "Preconditioning helps at every batch size",
        min(least) > 1,
        "least ratio of steps from each p to the next: " + ", ".join(f"{g:.2f}" for g in least),
    )


def preconditioning_raises_the_critical_batch_size(found: Found) -> Claim:
    sizes = [found.critical(line) for line in POWERS]
    return Claim(
        "The critical batch size grows with p",
        sizes == sorted(sizes),
        "for p = 0, 1/4, 1/2, 3/4: " + ", ".join(f"{size:.0f}" for size in sizes),
    )


def averaging_helps_at_small_batches_only(found: Found) -> Claim:
    gain = _gain(found, "SGD", "EMA of the weights")
    small, large = min(gain), max(gain)
    return Claim(
        "An average of the weights helps at small batches only",
        gain[small] > 3 and gain[large] < 1.05,
        f"SGD takes {gain[small]:.1f} times its steps at B = {small}, "
        f"{gain[large]:.2f} times at B = {large}",
    )


def the_rate_of_sgd_is_linear(found: Found) -> Claim:
    slope, most = _slope(found, "SGD")
    return Claim(
        "Below the critical batch size SGD's best rate is proportional to B",
        abs(slope - 1) < 0.1,
        f"it grows like B^{slope:.3f} up to B = {most}",
    )


def the_rate_of_adam_is_a_square_root(found: Found) -> Claim:
    slope, most = _slope(found, "Adam")
    return Claim(
        "Adam's best rate is proportional to the square root of B",
        abs(slope - 0.5) < 0.05,
        f"it grows like B^{slope:.3f} up to B = {most}",
    )


def a_fixed_preconditioner_is_not_adam(found: Found) -> Claim:
    slope, most = _slope(found, "SGD, p = 1/2")
    return Claim(
        "With the fixed preconditioner H^(1/2) the best rate is proportional to B instead",
        abs(slope - 1) < 0.1,
        f"it grows like B^{slope:.3f} up to B = {most}",
    )


def schedules_close_most_of_the_gap(found: Found) -> Claim:
    size = min(found.schedules)
    constant, bound = found.lines["SGD"][size].steps, found.bound(size)
    steps = found.schedules[size].steps
    share = math.log(constant / steps) / math.log(constant / bound)
    return Claim(
        "At small batches a schedule closes most of the gap to d / (2 target B)",
        share > 0.5,
        f"B = {size}: {constant} steps at the best constant rate, {steps} with the schedule, "
        f"bound {bound:.0f}: {share:.0%} of the way (of the logarithms)",
    )


CLAIMS: tuple[Callable[[Found], Claim], ...] = (
    momentum_does_not_help_at_small_batches,
    momentum_extends_perfect_scaling,
    preconditioning_helps_at_every_batch_size,
    preconditioning_raises_the_critical_batch_size,
    averaging_helps_at_small_batches_only,
    the_rate_of_sgd_is_linear,
    the_rate_of_adam_is_a_square_root,
    a_fixed_preconditioner_is_not_adam,
    schedules_close_most_of_the_gap,
)


def _gain(found: Found, line: str, other: str) -> dict[int, float]:
    """How many times the other's steps the line takes, at each batch size."""
    ours, theirs = found.lines[line], found.lines[other]
    return {size: ours[size].steps / theirs[size].steps for size in ours}


def _slope(found: Found, line: str) -> tuple[float, int]:
    """The power of B with which the best rate grows, and up to which B: an eighth of critical."""
    results = found.lines[line]
    sizes = [size for size in sorted(results) if size <= found.critical(line) / 8]
    rates = [results[size].lr for size in sizes]
    return float(np.polyfit(np.log(sizes), np.log(rates), 1)[0]), sizes[-1]
