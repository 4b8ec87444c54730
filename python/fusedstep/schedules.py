"""Learning rates and batch sizes as pure functions of the step or of the tokens seen."""

import math

from fusedstep.checks import refuse, require_number

__all__ = ["batch_size_ramp", "warmup_cosine"]


def warmup_cosine(
    step: int, *, max_lr: float, min_lr: float, warmup_steps: int, max_steps: int
) -> float:
    """Learning rate of GPT-3: linear warm-up to `max_lr`, then half a cosine down to `min_lr`.

    `step` counts optimizer steps from 0. The first rate is `max_lr / warmup_steps`, not zero: a
    step with rate zero would spend a batch and move nothing. `max_lr` is reached at step
    `warmup_steps - 1` and held at `warmup_steps`, where the cosine starts; from `max_steps` on the
    rate stays at `min_lr`.

    Raises TypeError for a count that is no int or a rate that is no number, ValueError for one
    below zero, `warmup_steps > max_steps`, an infinite `max_lr` or `min_lr > max_lr`.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B.
    """
    name = "warmup_cosine"
    _check_count(name, "step", step)
    _check_count(name, "warmup_steps", warmup_steps)
    _check_count(name, "max_steps", max_steps)
    if warmup_steps > max_steps:
        refuse(name, "warmup_steps", f"be at most max_steps ({max_steps})", warmup_steps)
    if require_number(name, "max_lr", max_lr) == math.inf:
        refuse(name, "max_lr", "be finite", max_lr)
    if require_number(name, "min_lr", min_lr) > max_lr:
        refuse(name, "min_lr", f"be at most max_lr ({max_lr})", min_lr)

    if step < warmup_steps:
        return max_lr * ((step + 1) / warmup_steps)
    if step >= max_steps:
        return min_lr
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    fallen = 0.5 * (1 - math.cos(math.pi * progress))
    return max(min_lr, max_lr - fallen * (max_lr - min_lr))  # rounding could undershoot


def batch_size_ramp(tokens: int, *, start: int, end: int, ramp_tokens: int) -> int:
    """Batch size after `tokens` tokens: from `start` linearly to `end` over `ramp_tokens`.

    `start` and `end` are in whatever the caller counts a batch in (sequences, tokens); the
    result is rounded down, in exact integer arithmetic, so that it is the same everywhere. Early
    gradients of a language model agree with each other, so that a small batch tells as much.

    Raises TypeError for an argument that is no integer, ValueError for `tokens` or
    `ramp_tokens` below zero, `start < 1` or `end < start`.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B.
    """
    name = "batch_size_ramp"
    _check_count(name, "tokens", tokens)
    _check_count(name, "start", start, least=1)
    _check_count(name, "end", end)
    _check_count(name, "ramp_tokens", ramp_tokens)
    if end < start:
        refuse(name, "end", f"be at least start ({start})", end)
    if tokens >= ramp_tokens:
        return end
    return start + (end - start) * tokens // ramp_tokens


def _check_count(function: str, argument: str, value: int, least: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        refuse(function, argument, "be an int", f"{type(value).__name__} {value!r}", TypeError)
    if value < least:
        refuse(function, argument, f"be at least {least}", value)
