"""How a case is measured: sides are checked against ours, then timed in rounds with it."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

import torch
from torch import Tensor

from bench.case import Case, NotMade, Side
from bench.load import Load
from bench.measure import Stream, in_rounds, median_interval

CALLS = 3  # of each side before its result is compared: state, tables and caches are warm then


@dataclass
class Outcome:
    """What was found about one side of a case; times in seconds a call."""

    provider: str
    check: str  # how far the result is from ours, or what was wrong
    passed: bool
    state_bytes: int = 0
    peak_bytes: int = 0
    times: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # to our time in the same round
    rates: list[float] = field(default_factory=list)  # bytes a second that torch streamed then
    load: str = ""

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The median, and the interval that has the true one with 95 %; 1 for our own side."""
        return (median(self.ratios), *median_interval(self.ratios)) if self.ratios else (1, 1, 1)


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    """The norm of all differences together, in float64; NaN where shapes differ."""
    if [tensor.shape for tensor in some] != [tensor.shape for tensor in others]:
        return math.nan
    squares = 0.0
    for a, b in zip(some, others, strict=True):
        dtype = torch.promote_types(a.dtype, torch.float32)
        difference = a.detach().to(dtype) - b.detach().to(a.device, dtype)
        squares += float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2
    return math.sqrt(squares)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


class Check:
    """Compares results with those of our side after as many calls."""

    def __init__(self, ours: Side, case: Case) -> None:
        self._tolerance, self._renews = case.tolerance, case.renews
        start = copies(ours.result())
        self._call(ours)
        self._ours = copies(ours.result())
        start = start or [torch.zeros_like(tensor) for tensor in self._ours]
        self._moved = distance(self._ours, start)

    def _call(self, side: Side) -> None:
        """Where calls have the same gradients, averages and the scale of a clip hardly matter."""
        side.sample(1)
        if self._renews:
            side.renew_grads()
        side.sample(CALLS - 1)

    def outcome(self, side: Side) -> Outcome:
        """Of a side that has not been called yet; it is called as often as ours was."""
        self._call(side)
        found = distance(self._ours, side.result()) / (self._moved or math.nan)
        passed = found <= self._tolerance  # not where it is NaN
        check = f"{found:.1e}" if passed else f"differs by {found:.1e}"
        return Outcome(side.provider, check, passed, side.state_bytes(), side.peak_bytes())


def made(sides: Iterator[Side]) -> Iterator[Side | Exception]:
    """Every side, or what was raised in its place: a peer that fails does not end the run."""
    while True:
        try:
            yield next(sides)
        except StopIteration:
            return
        except Exception as error:
            yield error


def checked(side: Side | Exception, check: Check) -> Outcome:
    """What the check says, also where a library raises."""
    if isinstance(side, Exception):
        name, cause = (str(side), side.__cause__) if isinstance(side, NotMade) else ("a side", side)
        return Outcome(name, f"not made: {told(cause)}", False)
    try:
        return check.outcome(side)
    except Exception as error:
        return Outcome(side.provider, failure(error), False)


def failure(error: BaseException | None) -> str:
    """What a row says of a side that raised."""
    return f"fails: {told(error)}"


def told(error: BaseException | None) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


@dataclass(frozen=True)
class Effort:
    """How long the sides of a case take turns."""

    seconds: float
    least_rounds: int = 7  # of fewer than 6 no median has an interval


class Stopped(Exception):
    """A side raised while it was timed; the cause says what."""

    def __init__(self, at: int):
        super().__init__(at)
        self.at = at  # which of the sides beside ours


def guarded(at: int, side: Side) -> Callable[[int], float]:
    """The side's sampler, that says whose it was where it raises."""

    def sample(calls: int) -> float:
        try:
            return side.sample(calls)
        except Exception as error:
            raise Stopped(at) from error

    return sample


def take_turns(
    ours: Side, timed: list[tuple[Side, Outcome]], how: Effort, stream: Stream | None
) -> Outcome:
    """Fills in the times of these beside ours, the load and the rate of memory; ours anew.

    A side that raises has failed, and leaves `timed`; the others are timed again without it.
    """
    rates: list[float] = []
    before = (lambda: rates.append(stream.sample())) if stream else None
    while True:
        rates.clear()
        sides = [side for side, _ in timed]
        samplers = [ours.sample, *(guarded(at, side) for at, side in enumerate(sides))]
        processes = [side.process for side in (ours, *sides)]
        load = Load()
        try:
            mine, *others = in_rounds(samplers, how.seconds, how.least_rounds, processes, before)
            break
        except Stopped as stopped:
            _, outcome = timed.pop(stopped.at)
            outcome.passed, outcome.check = False, failure(stopped.__cause__)
    said = load.text()
    for (_, outcome), times in zip(timed, others, strict=True):
        outcome.times, outcome.load, outcome.rates = times, said, rates
        outcome.ratios = [b / a for a, b in zip(mine, times, strict=True)]
    return Outcome(ours.provider, "", True, times=mine, load=said, rates=rates)


def measured(
    case: Case, device: torch.device, how: Effort, room: int, stream: Stream | None = None
) -> list[Outcome]:
    """The outcome of every side, ours first.

    room: how many sides may exist at a time. Where there are more, ours stays and meets the others
    in turn; all its samples count, and its load is busy if it was once.
    stream: sampled in each round where the case counts bytes.
    """
    stream = stream if case.least_bytes else None
    every = made(case.sides(device))
    ours = next(every)
    if isinstance(ours, Exception):
        raise ours
    check = Check(ours, case)
    outcomes = [Outcome(ours.provider, "", True, ours.state_bytes(), ours.peak_bytes())]

    def meet(some: list[Side | Exception]) -> None:
        """Checks these and times those that pass beside ours."""
        found = [(side, checked(side, check)) for side in some]
        outcomes.extend(outcome for _, outcome in found)
        timed = [(side, o) for side, o in found if isinstance(side, Side) and o.passed]
        if case.timed and (timed or not some):
            turns = take_turns(ours, timed, how, stream)
            outcomes[0].times += turns.times
            outcomes[0].rates += turns.rates
            if not outcomes[0].load.endswith("busy"):
                outcomes[0].load = turns.load
        for side in some:
            if isinstance(side, Side):
                side.close()

    while batch := list(islice(every, room - 1)):
        meet(batch)
        del batch  # with its sides, before the next are made
        gc.collect()
    if case.timed and not outcomes[0].times:
        meet([])
    ours.close()
    return outcomes
