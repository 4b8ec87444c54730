"""A torch LRScheduler that sets the rates which pure functions of the step give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusedstep.checks import refuse, require_count
from fusedstep.schedules.arguments import require_rate

Schedule = Callable[[int], float]


class Scheduler(LRScheduler):
    """Sets every group's `lr` to `schedule(step)`, for any torch optimizer.

    `schedule` takes the step, an int from 0, and returns the rate itself, not a factor; the rates
    that the optimizer was made with are replaced. It is one function for all groups, also for
    groups that are added later, or a list of one for each group. One function where the groups
    were given different rates is refused, as it would make them equal: give a list, or, for a
    factor on each group's own rate, torch's LambdaLR and a schedule with `max_lr=1`.

    A tensor `lr` stays the same tensor and is written in place; a float stays a float. `step()`,
    `get_last_lr()` and `last_epoch` (the step whose rate is set now) are torch's; inside
    SequentialLR each schedule starts from step 0 at its milestone, and it overwrites what stands
    before it in a ChainedScheduler.

    To resume, construct it, then load both state_dicts: constructing sets the rates of step
    `last_epoch + 1`, which the optimizer's state_dict puts right. The schedule itself is not in
    `state_dict()`, which therefore loads with `weights_only=True`; a pickle needs one that can be
    pickled, such as `functools.partial` of a function of a module.

    Raises TypeError where `optimizer` is no torch.optim.Optimizer or `schedule` neither a function
    nor a list of them, ValueError where there are not as many as groups; at any step the same for
    a rate that is no number, negative or not finite, before any group is changed. KeyError, as any
    of torch's, for a `last_epoch` above -1 where no scheduler had set `initial_lr`.
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

    def get_lr(self) -> list[float]:
        """The rates of step `last_epoch`, one float for each group."""
        return self._rates(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and the schedule, which are given to a new one again."""
        return {key: value for key, value in super().state_dict().items() if key != "schedule"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises ValueError where it is no scheduler's, or another number of groups has schedules.
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
            must = "be a list of one function a group where the groups' rates differ"
            refuse("Scheduler", "schedule", must, f"one function for the rates {rates}")


def _checked(schedule: Any) -> Schedule | list[Schedule]:
    """`schedule`, a list of its own where there are several."""
    if callable(schedule):
        return schedule
    must = "be a function of the step or a list of them"
    if not isinstance(schedule, (list, tuple)):
        refuse("Scheduler", "schedule", must, type(schedule).__name__, TypeError)
    for i, one in enumerate(schedule):
        if not callable(one):
            must = "be a function of the step"
            refuse("Scheduler", f"schedule[{i}]", must, type(one).__name__, TypeError)
    return list(schedule)
