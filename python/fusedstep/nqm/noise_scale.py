"""The gradient noise scale of a real run: from which batch size on more examples do not help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedstep.checks import refuse, require_count, require_number
from fusedstep.nqm.model import Array

_SHAPES = {"total": (), "squares": (), "mean": (2,), "scatter": (2, 2)}


class NoiseScale:
    """The noise scale tr(Sigma) / |G|^2 of a run, from two gradient norms a step.

    G is the mean gradient and Sigma the covariance of one example's. The squared norm of a batch's
    gradient has the mean |G|^2 + tr(Sigma) / B. Two batch sizes give both unknowns, each without
    bias; each is averaged over the updates, and the ratio is taken last. The small batch may be a
    part of the large one, such as its first micro-batch: only the two means count.

    Far below the noise scale a gradient is mostly noise, and twice the batch needs half the steps.
    Far above it more examples hardly change the gradient. At it, a run takes twice the fewest steps
    and twice the fewest examples.

    It is about plain gradient descent at the present parameters. It grows as the loss falls, and
    preconditioned rules, such as Adam's, can have another: Zhang et al. 2019, section 3.

    Nothing is read from a GPU in `update`; the properties wait for it.

    Args:
        small_batch: Examples (or tokens, but the same for both) in the smaller batch, at least 1.
        big_batch: Examples in the larger batch. With a single micro-batch there is no second batch
            size and no estimate: halve the micro-batch.
        decay: Weight of an update relative to the next one, above 0 and at most 1. 1 is the plain
            mean of all updates; below, an exponential average without the bias of its start, which
            follows a run: over some 1 / (1 - decay) updates.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range: `NoiseScale: <argument> must <property>, got
            <value>`.

    Example:
        >>> scale = NoiseScale(small_batch=8, big_batch=64)
        >>> for small, big in [(3.0, 2.0), (2.8, 2.1), (3.1, 2.1)]:
        ...     scale.update(small, big)
        >>> round(scale.value, 1), round(scale.standard_error, 1), scale.recommended_batch()
        (11.5, 1.9, 8)

    Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", the simple noise
    scale of section 2.2, its estimators of appendix A.1, arXiv 1812.06162.
    """

    def __init__(self, small_batch: int, big_batch: int, *, decay: float = 1.0) -> None:
        name = type(self).__name__
        self.small_batch = require_count(name, "small_batch", small_batch, least=1)
        self.big_batch = require_count(name, "big_batch", big_batch, least=1)
        if self.big_batch <= self.small_batch:
            must = f"be above small_batch ({self.small_batch}): one batch size cannot tell noise"
            refuse(name, "big_batch", f"{must} from gradient", big_batch)
        self.decay = require_number(name, "decay", decay, "be above 0 and at most 1")
        if not 0 < self.decay <= 1:
            refuse(name, "decay", "be above 0 and at most 1", decay)
        # Of the squared norms, small and big: the sum of the weights and of their squares, the
        # weighted mean, and the weighted sum of squares and products of differences from it.
        self._sums = {
            key: torch.zeros(shape, dtype=torch.float64, device="cpu")
            for key, shape in _SHAPES.items()
        }

    @torch.no_grad()
    def update(self, small_norm: float | Tensor, big_norm: float | Tensor) -> None:
        """Takes the norms of one step.

        A pair with a norm that is not finite, as in a step that GradScaler skips, counts for
        nothing.

        Args:
            small_norm: 2-norm of the mean gradient of the small batch: a number or a tensor with
                one element.
            big_norm: That of the large batch, at the same parameters.

        Raises:
            TypeError: A norm is not a number.
            ValueError: A norm is a negative number, or a tensor with more than one element.
        """
        pair = [self._scalar("small_norm", small_norm), self._scalar("big_norm", big_norm)]
        devices = [norm.device for norm in (*pair, self._sums["mean"])]
        device = next((device for device in devices if device.type != "cpu"), devices[0])
        squares = torch.stack([norm.to(device) for norm in pair]).square()
        known = squares.isfinite().all()  # stays on the device
        before = {key: tensor.to(device) for key, tensor in self._sums.items()}
        after = self._after(before, squares)
        self._sums = {key: torch.where(known, after[key], before[key]) for key in _SHAPES}

    def _after(self, before: dict[str, Tensor], squares: Tensor) -> dict[str, Tensor]:
        """The sums with one more pair, by West's update: no difference of large sums."""
        total = self.decay * before["total"] + 1
        change = squares - before["mean"]
        scatter = (1 - 1 / total) * torch.outer(change, change)
        return {
            "total": total,
            "squares": self.decay**2 * before["squares"] + 1,
            "mean": before["mean"] + change / total,
            "scatter": self.decay * before["scatter"] + scatter,
        }

    @property
    def signal(self) -> float:
        """The estimate of |G|^2; NaN before the first update. Noise can make it negative."""
        return self._estimates()[0]

    @property
    def noise(self) -> float:
        """The estimate of tr(Sigma), one example's; NaN before the first update."""
        return self._estimates()[1]

    @property
    def value(self) -> float:
        """The noise scale, in examples.

        NaN before the first update. Infinite where the estimate of |G|^2 is not above 0: so far
        the gradient is not seen for the noise. 0 where that of tr(Sigma) is below 0.
        """
        signal, noise, _ = self._estimates()
        if math.isnan(signal):
            return math.nan
        return max(noise, 0.0) / signal if signal > 0 else math.inf

    @property
    def standard_error(self) -> float:
        """Of `value`, by the delta method; infinite before the second update and where `value` is.

        It takes the updates as independent. Where the noise scale itself changes, as it does in
        training, the change counts as scatter, which makes the error larger rather than smaller.
        """
        signal, noise, covariance = self._estimates()
        if not signal > 0 or covariance is None:
            return math.inf
        slope = np.array([-noise / signal, 1.0]) / signal  # of noise / signal
        return math.sqrt(max(float(slope @ covariance @ slope), 0.0))

    def recommended_batch(self) -> int:
        """The batch size that takes twice the fewest steps and twice the fewest examples.

        The noise scale, as the nearest multiple of `small_batch`, at least one. Take fewer examples
        where they are what costs, more where steps are: E = E_min (1 + B / value) examples and
        S = S_min (1 + value / B) steps.

        Raises:
            RuntimeError: The noise scale is not known or not finite.
        """
        value = self.value
        if not math.isfinite(value):
            raise RuntimeError(
                f"recommended_batch: the noise scale must be finite, got {value}; "
                "it needs more updates or a larger big_batch"
            )
        return self.small_batch * max(1, round(value / self.small_batch))

    def state_dict(self) -> dict[str, Any]:
        """All that it knows, in copies, with the batch sizes."""
        tensors = {key: tensor.clone() for key, tensor in self._sums.items()}
        return {"small_batch": self.small_batch, "big_batch": self.big_batch, **tensors}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was called; `decay` stays as it is.

        Raises:
            ValueError, TypeError: It is of other batch sizes, or an entry is missing or has another
                shape. Nothing is changed.
        """
        name = "load_state_dict"
        for key in ("small_batch", "big_batch"):
            if state_dict.get(key) != getattr(self, key):
                refuse(name, key, f"be {getattr(self, key)}", state_dict.get(key))
        for key, shape in _SHAPES.items():
            tensor = state_dict.get(key)
            if not isinstance(tensor, Tensor):
                refuse(name, key, "be a tensor", type(tensor).__name__, TypeError)
            if tensor.shape != shape:
                refuse(name, key, f"have shape {shape}", tuple(tensor.shape))
        self._sums = {key: state_dict[key].detach().to(torch.float64, copy=True) for key in _SHAPES}

    def _scalar(self, argument: str, norm: Any) -> Tensor:
        """A norm as a 0-d float64 tensor, on its device."""
        if isinstance(norm, Tensor):
            if norm.numel() != 1:
                refuse("update", argument, "have one element", tuple(norm.shape))
            return norm.detach().reshape(()).to(torch.float64)
        if isinstance(norm, bool) or not isinstance(norm, Real):
            refuse("update", argument, "be a number", type(norm).__name__, TypeError)
        if norm < 0:
            refuse("update", argument, "be 0 or more", norm)
        return torch.tensor(float(norm), dtype=torch.float64, device="cpu")

    def _estimates(self) -> tuple[float, float, Array | None]:
        """|G|^2, tr(Sigma) and the covariance of the two; None where that is not known.

        Both are linear in the two mean squares. Of the mean of n values the covariance is theirs
        over n; with weights w, n is (sum of w)^2 / (sum of w^2).
        """
        total, squares = (float(self._sums[key]) for key in ("total", "squares"))
        mean, scatter = (self._sums[key].cpu().numpy() for key in ("mean", "scatter"))
        if total == 0:
            return math.nan, math.nan, None
        small, big = self.small_batch, self.big_batch
        linear = np.array([[-small, big], [small * big, -small * big]]) / (big - small)
        signal, noise = (float(estimate) for estimate in linear @ mean)
        freedom = total - squares / total
        if freedom < 1e-9 * total:  # a single update
            return signal, noise, None
        covariance = linear @ scatter @ linear.T / freedom
        return signal, noise, covariance * squares / total**2
