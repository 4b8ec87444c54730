"""A torch LRScheduler that sets rates from pure functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusedstep.checks import refuse, require_count, require_rate

Schedule = Callable[[int], float]


class Scheduler(LRScheduler):
    """Sets every group's `lr` to `schedule(step)`, for any torch optimizer.

    A schedule returns the rate itself, not a factor; it replaces the rates given to the optimizer.
    A tensor `lr` stays the same tensor and is written in place; a float stays a float. `step()`,
    `get_last_lr()` and `last_epoch` (the step whose rate is set now) are torch's. Inside
    SequentialLR each schedule starts from step 0 at its milestone; in a ChainedScheduler it
    overwrites earlier schedulers' rates.

    To resume, construct a Scheduler, then load both state_dicts: the constructor sets the rates of
    step `last_epoch + 1`, and the optimizer's state_dict corrects them. The schedule itself is not
    in `state_dict()`, which therefore loads with `weights_only=True`. A pickle needs a schedule
    that can be pickled, such as `functools.partial` of a module's function.

    Args:
        optimizer: Any torch.optim.Optimizer.
        schedule: A function from the step, an int from 0, to the rate of all groups, including
            those added later; or a list with one function per group. A single function raises a
            ValueError if the groups' rates differ, because it would make them equal: pass a list
            or, to scale each group's own rate, use torch's LambdaLR with a schedule of `max_lr=1`.
        last_epoch: The step before the first, as in torch's schedulers.

    Raises:
        TypeError: `optimizer` is not a torch.optim.Optimizer, `schedule` is neither a function nor
            a list of functions, or, at any step, a rate is not a number.
        ValueError: The list does not have one function per group, or, at any step, a rate is
            negative or not finite; then no group is changed. The message is
            `Scheduler: <argument> must <property>, got <value>`.
        KeyError: As in torch, `last_epoch` is above -1 and no scheduler has set `initial_lr`.

    Example:
        >>> peak = {"max_lr": 0.1, "min_lr": 0.01, "warmup_steps": 2, "max_steps": 6}
        >>> optimizer = fusedstep.AdamW([torch.nn.Parameter(torch.ones(1))])
        >>> scheduler = Scheduler(optimizer, functools.partial(warmup_cosine, **peak))
        >>> scheduler.get_last_lr()
        [0.05]
        >>> optimizer.step(), scheduler.step()
        (None, None)
        >>> scheduler.get_last_lr()
        [0.1]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule | Sequence[Schedule],
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            kind = type(optimizer).__name__
            refuse("Scheduler", "optimizer", "be a torch.optim.Optimizer", kind, TypeError)
        self.optimizer = optimizer
        self.schedule = _checked(schedule)
        last_epoch = require_count("Scheduler", "last_epoch", last_epoch, least=-1)
        if callable(schedule):
            self._require_equal_rates()
        self._rates(last_epoch + 1)  # refuses before super() writes to the optimizer
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Returns the rates of step `last_epoch`, one float for each group."""
        return list(self._rates(self.last_epoch))

    def state_dict(self) -> dict[str, Any]:
        """Returns all but the optimizer and the schedule; pass both to the new Scheduler."""
        return {key: value for key, value in super().state_dict().items() if key != "schedule"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from the step at which `state_dict` was taken.

        Args:
            state_dict: Result of a scheduler's `state_dict()`, with as many groups if each has a
                schedule of its own.

        Raises:
            ValueError: `state_dict` is not a scheduler's, or is for another number of groups.
        """
        for key in ("last_epoch", "_step_count", "_last_lr"):
            if key not in state_dict:
                must = f"have {key!r}, as a scheduler's has"
                refuse("Scheduler", "state_dict", must, sorted(map(str, state_dict)))
        groups, saved = len(self.optimizer.param_groups), len(state_dict["_last_lr"])
        if not callable(self.schedule) and saved != groups:
            must = f"have one rate for each of {groups} groups"
            refuse("Scheduler", "state_dict['_last_lr']", must, saved)
        super().load_state_dict(state_dict)

    def _rates(self, step: int) -> list[float]:
        groups = len(self.optimizer.param_groups)
        if callable(self.schedule):
            return [require_rate("Scheduler", f"schedule({step})", self.schedule(step))] * groups
        if len(self.schedule) != groups:
            must = f"have one function for each of {groups} groups"
            refuse("Scheduler", "schedule", must, len(self.schedule))
        return [
            require_rate("Scheduler", f"schedule[{i}]({step})", schedule(step))
            for i, schedule in enumerate(self.schedule)
        ]

    def _require_equal_rates(self) -> None:
        groups = self.optimizer.param_groups
        rates = [float(group.get("initial_lr", group["lr"])) for group in groups]
        if len(set(rates)) > 1:
            must = "be a list with one function per group where the groups' rates differ"
            refuse("Scheduler", "schedule", must, f"one function for the rates {rates}")


def _checked(schedule: Any) -> Schedule | list[Schedule]:
    """`schedule`, copied if it is a list."""
    if callable(schedule):
        one_for_all: Schedule = schedule
        return one_for_all
    must = "be a function of the step or a list of them"
    if not isinstance(schedule, (list, tuple)):
        refuse("Scheduler", "schedule", must, type(schedule).__name__, TypeError)
    for i, one in enumerate(schedule):
        if not callable(one):
            must = "be a function of the step"
            refuse("Scheduler", f"schedule[{i}]", must, type(one).__name__, TypeError)
    return list(schedule)
