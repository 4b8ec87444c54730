"""Learning rates and batch sizes as pure functions of the step, and the scheduler that sets them.

    from fusedstep.schedules import Scheduler, warmup_cosine
    peak = {"max_lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 100, "max_steps": 1000}
    scheduler = Scheduler(optimizer, functools.partial(warmup_cosine, **peak))

and in the loop, `optimizer.step()`, then `scheduler.step()`. The functions need neither a scheduler
nor torch: `warmup_cosine(step, **peak)` is the rate of any step, in any order.
"""

from fusedstep.schedules.functions import (
    batch_size_ramp,
    constant,
    piecewise_constant,
    warmup_cosine,
    warmup_linear,
    warmup_stable_decay,
)
from fusedstep.schedules.scheduler import Scheduler

__all__ = [
    "Scheduler",
    "batch_size_ramp",
    "constant",
    "piecewise_constant",
    "warmup_cosine",
    "warmup_linear",
    "warmup_stable_decay",
]
