"""Learning rates that rise linearly to a peak and fall from it: by a cosine, a line, a cooldown."""

import math

from fusedstep.checks import refuse, require_count
from fusedstep.schedules.arguments import require_rate

# How much of the way down is done, from 0 to 1, at such a share of the falling steps.
_FALLEN = {
    "cosine": lambda share: 0.5 * (1 - math.cos(math.pi * share)),
    "linear": lambda share: share,
    "1-sqrt": math.sqrt,
}
_COOLDOWNS = ("1-sqrt", "linear")


def warmup_cosine(
    step: int, *, max_lr: float, min_lr: float, warmup_steps: int, max_steps: int
) -> float:
    """Learning rate of GPT-3: linear warm-up to `max_lr`, then half a cosine down to `min_lr`.

        max_lr (step + 1) / warmup_steps                       while step < warmup_steps
        max_lr - (max_lr - min_lr) (1 - cos(pi share)) / 2     while step < max_steps
        min_lr                                                 from then on
        share = (step - warmup_steps) / (max_steps - warmup_steps)

    `step` counts optimizer steps from 0. The first rate is `max_lr / warmup_steps`, not zero: a
    step with rate zero would spend a batch and move nothing. `max_lr` is reached at step
    `warmup_steps - 1` and held at `warmup_steps`, where the cosine starts; from `max_steps` on the
    rate stays at `min_lr`.

    Raises TypeError for a count that is no int or a rate that is no number, ValueError for one
    below zero, `warmup_steps > max_steps`, a rate that is not finite or `min_lr > max_lr`.

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

    Units, joints and errors are those of `warmup_cosine`. With `min_lr=0` the last of `max_steps`
    steps still has the rate `max_lr / (max_steps - warmup_steps)`; those beyond it have none.

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

    Unlike a cosine's, its rates do not depend on `max_steps` before the cooldown: a run can be
    continued from there for longer. `step` counts optimizer steps from 0; `max_lr` still holds at
    step `max_steps - decay_steps`, where the cooldown starts.

    Raises TypeError and ValueError as `warmup_cosine`, also where `decay_steps` exceeds
    `max_steps - warmup_steps` and for another `decay`.

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
