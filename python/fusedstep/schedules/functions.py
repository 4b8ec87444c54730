"""Learning rates and batch sizes as pure functions of the step or of the tokens seen."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from fusedstep.checks import refuse, require_count, require_rate

# The part of the fall that is done, from 0 to 1, after this share of its steps.
_FALLEN: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: 0.5 * (1 - math.cos(math.pi * share)),
    "linear": lambda share: share,
    "1-sqrt": math.sqrt,
}
_COOLDOWNS = ("1-sqrt", "linear")


def constant(step: int, *, lr: float) -> float:
    """The same learning rate at every step.

    This is what an optimizer without a scheduler has; use it where an API requires a schedule.

    Args:
        step: Optimizer step, counted from 0.
        lr: Learning rate, finite and 0 or more.

    Returns:
        `lr`, as a float.

    Raises:
        TypeError: `step` is not an int, or `lr` is not a number.
        ValueError: `step` or `lr` is negative, or `lr` is not finite. The message is
            `constant: <argument> must <property>, got <value>`.

    Example:
        >>> constant(7, lr=0.1)
        0.1
    """
    require_count("constant", "step", step)
    return require_rate("constant", "lr", lr)


def piecewise_constant(step: int, *, boundaries: Sequence[int], values: Sequence[float]) -> float:
    """A staircase: `values[i]`, where i of the `boundaries` are at most `step`.

    A boundary is the first step that has the next value, like a milestone of MultiStepLR. The last
    value holds from the last boundary on.

    Args:
        step: Optimizer step, counted from 0.
        boundaries: Ints in increasing order, the first above 0.
        values: Rates, one more than boundaries, finite and 0 or more, in any order.

    Returns:
        The rate at `step`.

    Raises:
        TypeError: A step or boundary is not an int, a value is not a number, or an argument is not
            a sequence.
        ValueError: The lengths do not match, boundaries do not increase, a step or value is
            negative, or a value is not finite. The message is
            `piecewise_constant: <argument> must <property>, got <value>`.

    Example:
        >>> [piecewise_constant(s, boundaries=[2, 3], values=[0.1, 0.3, 0.2]) for s in range(5)]
        [0.1, 0.1, 0.3, 0.2, 0.2]

    Source: He et al. 2016, "Deep Residual Learning", section 4.2: a tenth at 32k and 48k steps.
    """
    name = "piecewise_constant"
    step = require_count(name, "step", step)
    for argument, given in (("boundaries", boundaries), ("values", values)):
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
            refuse(name, argument, "be a sequence", type(given).__name__, TypeError)
    if len(values) != len(boundaries) + 1:
        must = f"have one more entry than boundaries ({len(boundaries)})"
        refuse(name, "values", must, len(values))
    least, steps = 1, []
    for i, boundary in enumerate(boundaries):
        steps.append(require_count(name, f"boundaries[{i}]", boundary, least))
        least = steps[-1] + 1
    rates = [require_rate(name, f"values[{i}]", value) for i, value in enumerate(values)]
    return rates[bisect_right(steps, step)]


def warmup_cosine(
    step: int, *, max_lr: float, min_lr: float, warmup_steps: int, max_steps: int
) -> float:
    """Learning rate of GPT-3: linear warm-up to `max_lr`, then half a cosine down to `min_lr`.

        max_lr (step + 1) / warmup_steps                       while step < warmup_steps
        max_lr - (max_lr - min_lr) (1 - cos(pi share)) / 2     while step < max_steps
        min_lr                                                 from then on
        share = (step - warmup_steps) / (max_steps - warmup_steps)

    The first rate is `max_lr / warmup_steps`, not zero: a step with rate zero would waste a batch.
    `max_lr` is reached at step `warmup_steps - 1` and held at `warmup_steps`, where the cosine
    starts.

    Args:
        step: Optimizer step, counted from 0.
        max_lr: Peak rate.
        min_lr: Rate at the end, at most `max_lr`.
        warmup_steps: Length of the warm-up; 0 for none.
        max_steps: Length of the run, at least `warmup_steps`.

    Returns:
        The rate at `step`.

    Raises:
        TypeError: A count is not an int, or a rate is not a number.
        ValueError: An argument is negative or not finite, `warmup_steps > max_steps`, or
            `min_lr > max_lr`. The message is
            `warmup_cosine: <argument> must <property>, got <value>`.

    Example:
        >>> peak = {"max_lr": 0.1, "min_lr": 0.01, "warmup_steps": 2, "max_steps": 6}
        >>> [round(warmup_cosine(step, **peak), 4) for step in range(8)]
        [0.05, 0.1, 0.1, 0.0868, 0.055, 0.0232, 0.01, 0.01]

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5 without restarts; with the warm-up:
    Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B.
    """
    return _rise_and_fall("warmup_cosine", "cosine", step, max_lr, min_lr, warmup_steps, max_steps)


def warmup_linear(
    step: int, *, max_lr: float, min_lr: float, warmup_steps: int, max_steps: int
) -> float:
    """Learning rate of BERT: linear warm-up to `max_lr`, then a straight line down to `min_lr`.

        max_lr (step + 1) / warmup_steps        while step < warmup_steps
        max_lr - (max_lr - min_lr) share        while step < max_steps
        min_lr                                  from then on
        share = (step - warmup_steps) / (max_steps - warmup_steps)

    Its parts join like those of `warmup_cosine`. With `min_lr=0` the last of `max_steps` steps
    still has the rate `max_lr / (max_steps - warmup_steps)`; later steps have rate 0.

    Args:
        step: Optimizer step, counted from 0.
        max_lr: Peak rate.
        min_lr: Rate at the end, at most `max_lr`.
        warmup_steps: Length of the warm-up; 0 for none.
        max_steps: Length of the run, at least `warmup_steps`.

    Returns:
        The rate at `step`.

    Raises:
        TypeError: A count is not an int, or a rate is not a number.
        ValueError: An argument is negative or not finite, `warmup_steps > max_steps`, or
            `min_lr > max_lr`. The message is
            `warmup_linear: <argument> must <property>, got <value>`.

    Example:
        >>> peak = {"max_lr": 0.8, "min_lr": 0.0, "warmup_steps": 2, "max_steps": 6}
        >>> [round(warmup_linear(step, **peak), 4) for step in range(8)]
        [0.4, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0]

    Source: Devlin et al. 2019, "BERT", appendix A.2.
    """
    return _rise_and_fall("warmup_linear", "linear", step, max_lr, min_lr, warmup_steps, max_steps)


def warmup_stable_decay(
    step: int,
    *,
    max_lr: float,
    min_lr: float,
    warmup_steps: int,
    decay_steps: int,
    max_steps: int,
    decay: str = "1-sqrt",
) -> float:
    """Warm-up to `max_lr`, held until `decay_steps` before the end, then a cooldown to `min_lr`.

        max_lr (step + 1) / warmup_steps        while step < warmup_steps
        max_lr                                  while step < max_steps - decay_steps
        max_lr - (max_lr - min_lr) fallen       while step < max_steps
        min_lr                                  from then on
        fallen = sqrt(share) where decay is "1-sqrt", share where it is "linear"
        share = (step - (max_steps - decay_steps)) / decay_steps

    Before the cooldown the rates do not depend on `max_steps`, unlike a cosine's, so a run can be
    extended from there. `max_lr` still holds at step `max_steps - decay_steps`, where the cooldown
    starts.

    Args:
        step: Optimizer step, counted from 0.
        max_lr: Peak rate.
        min_lr: Rate at the end, at most `max_lr`.
        warmup_steps: Length of the warm-up; 0 for none.
        decay_steps: Length of the cooldown, at most `max_steps - warmup_steps`.
        max_steps: Length of the run, at least `warmup_steps`.
        decay: Shape of the cooldown, "1-sqrt" or "linear".

    Returns:
        The rate at `step`.

    Raises:
        TypeError: A count is not an int, or a rate is not a number.
        ValueError: An argument is negative or not finite, a length exceeds its limit,
            `min_lr > max_lr`, or `decay` is unknown. The message is
            `warmup_stable_decay: <argument> must <property>, got <value>`.

    Example:
        >>> peak = {"max_lr": 0.8, "min_lr": 0.0, "warmup_steps": 2, "max_steps": 8}
        >>> line = {"decay_steps": 4, "decay": "linear"}
        >>> [round(warmup_stable_decay(step, **peak, **line), 4) for step in range(9)]
        [0.4, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0]

    Source: Hu et al. 2024, "MiniCPM", section 4; the cooldown 1 - sqrt: Hägele et al. 2024,
    "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", section 3.
    """
    name = "warmup_stable_decay"
    if decay not in _COOLDOWNS:
        refuse(name, "decay", "be '1-sqrt' or 'linear'", repr(decay))
    count = require_count(name, "decay_steps", decay_steps)
    return _rise_and_fall(name, decay, step, max_lr, min_lr, warmup_steps, max_steps, count)


def _rise_and_fall(
    name: str,
    shape: str,
    step: int,
    max_lr: float,
    min_lr: float,
    warmup_steps: int,
    max_steps: int,
    decay_steps: int | None = None,
) -> float:
    """The rate at `step`; the fall takes the last `decay_steps`, or all after the warm-up."""
    step = require_count(name, "step", step)
    warmup_steps = require_count(name, "warmup_steps", warmup_steps)
    max_steps = require_count(name, "max_steps", max_steps)
    if warmup_steps > max_steps:
        refuse(name, "warmup_steps", f"be at most max_steps ({max_steps})", warmup_steps)
    room = max_steps - warmup_steps
    decay_steps = room if decay_steps is None else decay_steps
    if decay_steps > room:
        refuse(name, "decay_steps", f"be at most max_steps - warmup_steps ({room})", decay_steps)
    max_lr = require_rate(name, "max_lr", max_lr)
    min_lr = require_rate(name, "min_lr", min_lr)
    if min_lr > max_lr:
        refuse(name, "min_lr", f"be at most max_lr ({max_lr})", min_lr)

    start = max_steps - decay_steps
    if step < warmup_steps:
        return max_lr * ((step + 1) / warmup_steps)
    if step >= max_steps:
        return min_lr
    if step <= start:
        return max_lr
    fallen = _FALLEN[shape]((step - start) / decay_steps)
    return max(min_lr, max_lr - fallen * (max_lr - min_lr))  # rounding could undershoot


def batch_size_ramp(tokens: int, *, start: int, end: int, ramp_tokens: int) -> int:
    """Batch size after `tokens` tokens: from `start` linearly to `end` over `ramp_tokens`.

        start + floor((end - start) tokens / ramp_tokens)     while tokens < ramp_tokens
        end                                                   from then on

    Early gradients of a language model agree with each other, so a small batch is enough. The
    result is rounded down in exact integer arithmetic, so it is the same everywhere.

    Args:
        tokens: Number of tokens seen so far.
        start: First batch size, at least 1, in any unit (sequences, tokens).
        end: Last batch size, at least `start`, in the same unit.
        ramp_tokens: Number of tokens after which `end` is reached; 0 starts at `end`.

    Returns:
        The batch size, in the unit of `start`.

    Raises:
        TypeError: An argument is not an int.
        ValueError: An argument is below its least value. The message is
            `batch_size_ramp: <argument> must <property>, got <value>`.

    Example:
        >>> [batch_size_ramp(t, start=4, end=12, ramp_tokens=80) for t in (0, 9, 10, 79, 80)]
        [4, 4, 5, 11, 12]

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B.
    """
    name = "batch_size_ramp"
    tokens = require_count(name, "tokens", tokens)
    start = require_count(name, "start", start, least=1)
    end = require_count(name, "end", end)
    ramp_tokens = require_count(name, "ramp_tokens", ramp_tokens)
    if end < start:
        refuse(name, "end", f"be at least start ({start})", end)
    if tokens >= ramp_tokens:
        return end
    return start + (end - start) * tokens // ramp_tokens
