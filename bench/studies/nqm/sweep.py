"""What the study computes: steps and rates at every batch size, for rules, powers and schedules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.studies.stages import Stages
from fusedstep.nqm import Result, Schedule, optimal_schedule, steps_to_target

# The lines of the figures: a rule of steps_to_target and the power of a fixed preconditioner.
LINES = {
    "SGD": ("sgd", 0.0),
    "momentum": ("momentum", 0.0),
    "EMA of the weights": ("ema", 0.0),
    "Adam": ("adam", 0.0),
    "SGD, p = 1/4": ("sgd", 0.25),
    "SGD, p = 1/2": ("sgd", 0.5),
    "SGD, p = 3/4": ("sgd", 0.75),
    "momentum, p = 1/2": ("momentum", 0.5),
}
POWERS = ("SGD", "SGD, p = 1/4", "SGD, p = 1/2", "SGD, p = 3/4")


@dataclass(frozen=True)
class Settings:
    """The model, as in the paper, and what of it is computed."""

    batch_sizes: tuple[int, ...] = tuple(2**k for k in range(2, 21))
    schedule_sizes: tuple[int, ...] = tuple(2**k for k in range(2, 17))
    adam_from: int = 4  # its steps are simulated one by one: smaller batches take longer
    dim: int = 10_000
    bins: int = 100
    pieces: int = 50
    target: float = 0.01


QUICK = Settings(
    batch_sizes=(4, 16, 64, 1024, 16384, 2**20),
    schedule_sizes=(4, 1024),
    adam_from=64,
    bins=30,
    pieces=10,
)


@dataclass(frozen=True)
class Found:
    """For each line its result at each batch size; for each of those a schedule."""

    settings: Settings
    lines: dict[str, dict[int, Result]] = field(default_factory=dict)
    schedules: dict[int, Schedule] = field(default_factory=dict)

    def bound(self, batch_size: int) -> float:
        """The steps below which no schedule can reach the target at small batches."""
        return self.settings.dim / (2 * self.settings.target * batch_size)

    def critical(self, line: str) -> float:
        """Where the line's asymptotes cross: its examples at the smallest batch over the steps
        at the largest, as `fusedstep.nqm.critical_batch_size`."""
        results = self.lines[line]
        small, large = min(results), max(results)
        return small * results[small].steps / results[large].steps


def sweep(settings: Settings, stages: Stages) -> Found:
    """Computes all of it."""
    found = Found(settings)
    model: dict[str, Any] = {
        "target": settings.target,
        "dim": settings.dim,
        "bins": settings.bins,
    }
    for line, (rule, power) in LINES.items():
        sizes = [b for b in settings.batch_sizes if rule != "adam" or b >= settings.adam_from]
        found.lines[line] = {}
        with stages.stage(f"Steps to the target: {line}", len(sizes)) as stage:
            for size in reversed(sizes):  # the slow ones last
                result = steps_to_target(rule, batch_size=size, power=power, **model)
                found.lines[line][size] = result
                stage.step(f"B = {size}: {result.steps} steps")
    with stages.stage("Optimal schedules", len(settings.schedule_sizes)) as stage:
        for size in settings.schedule_sizes:
            schedule = optimal_schedule(batch_size=size, pieces=settings.pieces, **model)
            found.schedules[size] = schedule
            stage.step(f"B = {size}: {schedule.steps} steps")
    return found
