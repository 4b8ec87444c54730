"""What the paper says of the noise scale, as functions that say whether it holds here."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bench.studies.claims import Claim
from bench.studies.noise_scale.measure import Found, Step

Array = npt.NDArray[np.float64]


def two_batch_sizes_predict_the_others(found: Found) -> Claim:
    """Mean |G_B|^2 = |G|^2 + tr(Sigma) / B: the estimate's one assumption."""
    worst, texts, sizes = 0.0, [], found.settings.sizes
    for name, steps in zip(("first", "last"), found.ends, strict=True):
        squares = np.square([step.norms for step in steps])
        for size, measured in zip(sizes[1:-1], squares.T[1:-1], strict=True):
            share = (1 / size - 1 / sizes[-1]) / (1 / sizes[0] - 1 / sizes[-1])
            predicted = share * squares[:, 0] + (1 - share) * squares[:, -1]
            ratio, error = _ratio(measured, predicted)
            worst = max(worst, abs(ratio - 1) / error)
            texts.append(f"{name} steps, B = {size}: {ratio:.3f} ± {error:.3f}")
    return Claim(
        "The norms at two batch sizes predict those at the ones between",
        worst < 4,
        "measured over predicted: " + "; ".join(texts),
    )


def it_grows_over_training(found: Found) -> Claim:
    """Judged by the inverse, |G|^2 / tr(Sigma): it has an error where |G|^2 drowns in noise."""
    (early, first), (late, last) = (_ratio(*_parts(found, steps)) for steps in found.ends)
    texts = [
        f"{scale.value:.3g} ± {scale.standard_error:.2g}" for scale in map(found.scale, found.ends)
    ]
    return Claim(
        "The noise scale grows over training",
        early - late > 3 * math.hypot(first, last),
        f"{texts[0]} sequences in the first {found.settings.span} steps, {texts[1]} in the last; "
        f"inverse {early:.4f} ± {first:.4f} and {late:.4f} ± {last:.4f}",
    )


def it_grows_as_the_gradient_shrinks(found: Found) -> Claim:
    early, late = (found.scale(steps) for steps in found.ends)
    signal, noise = late.signal / early.signal, late.noise / early.noise
    return Claim(
        "It grows because the gradient shrinks more than its noise",
        signal < noise,
        f"from the first steps to the last |G|^2 becomes {signal:.3f} times as large, "
        f"tr(Sigma) {noise:.2f} times",
    )


CLAIMS: tuple[Callable[[Found], Claim], ...] = (
    two_batch_sizes_predict_the_others,
    it_grows_over_training,
    it_grows_as_the_gradient_shrinks,
)


def _parts(found: Found, steps: list[Step]) -> tuple[Array, Array]:
    """Each step's own estimates of |G|^2 and tr(Sigma)."""
    scales = [found.scale([step]) for step in steps]
    return np.array([s.signal for s in scales]), np.array([s.noise for s in scales])


def _ratio(above: Array, below: Array) -> tuple[float, float]:
    """The ratio of two means over steps, and its standard error."""
    ratio = above.mean() / below.mean()
    rest = above - ratio * below
    return float(ratio), float(rest.std(ddof=1) / math.sqrt(len(rest)) / abs(below.mean()))
