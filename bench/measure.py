"""How sides are timed, in rounds of one process; what the device can do; what it is."""

from __future__ import annotations

import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

import torch

import fusedstep
from bench.command import InputError
from bench.record import commit, driver
from fusedstep import build
from fusedstep.__main__ import processor_name

LEAST_SAMPLE = 2e-3  # seconds; shorter calls are repeated within a sample
IDLE = 20e-3  # seconds; OpenMP's threads spin for some milliseconds after their work
STREAMED = 1 << 24  # float64 elements of the passes that give the bandwidth
Call = Callable[[], object]
Timer = Callable[[Call, int], float]  # seconds of a call repeated that many times


def cpu_seconds(call: Call, repeats: int) -> float:
    """Seconds of the wall clock."""
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - begin


def cuda_seconds(call: Call, repeats: int) -> float:
    """Seconds between two events on the device: gaps where it waits for the host count too."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def cold_cuda_seconds(call: Call, repeats: int) -> float:
    """The same for calls that find nothing of theirs in the L2 cache: it is overwritten before."""
    flushed = torch.empty(
        2 * l2_bytes(torch.cuda.current_device()), dtype=torch.uint8, device="cuda"
    )
    spans = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for begin, end in spans:
        flushed.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sum(begin.elapsed_time(end) for begin, end in spans) / 1e3


def l2_bytes(index: int) -> int:
    """The size of a GPU's L2 cache."""
    return int(torch.cuda.get_device_properties(index).L2_cache_size)


def timer_of(device: torch.device) -> Timer:
    """The timer for work on this device."""
    return cuda_seconds if device.type == "cuda" else cpu_seconds


def cold_timer_of(device: torch.device) -> Timer:
    """The same, with a cold L2 cache on a GPU."""
    return cold_cuda_seconds if device.type == "cuda" else cpu_seconds


def repeats_of(sample: Callable[[int], float]) -> int:
    """How many calls last for LEAST_SAMPLE, twice in a row: one slow call must not decide."""
    repeats = 1
    while any(sample(repeats) < LEAST_SAMPLE for _ in range(2)):
        repeats *= 2
    return repeats


def in_rounds(
    samplers: Sequence[Callable[[int], float]],
    seconds: float,
    least_rounds: int = 7,
    processes: Sequence[int] | None = None,
    before: Call | None = None,
) -> list[list[float]]:
    """Seconds a call of every sampler, a sample a round each, until `seconds` have passed.

    samplers: each makes and times so many calls; they must have been warmed up.
    processes: the one in which each works; by default the same.
    before: called before each round; then an untimed call of the first side fills the caches.

    The order is drawn anew in each round, the same in every run: each side follows each of the
    others, and finds in the caches what that one leaves. Where the process changes, all idle until
    no thread of the last one spins, and an untimed call wakes those of the next.
    """
    places = [0] * len(samplers) if processes is None else processes
    last: int | None = None

    def take(at: int, calls: int) -> float:
        nonlocal last
        if places[at] != last:
            time.sleep(IDLE)
            samplers[at](1)
            last = places[at]
        return samplers[at](calls)

    order = list(range(len(samplers)))
    repeats = [repeats_of(partial(take, at)) for at in order]
    taken: list[list[float]] = [[] for _ in samplers]
    draw = random.Random(0)
    end = time.perf_counter() + seconds
    while len(taken[0]) < least_rounds or time.perf_counter() < end:
        draw.shuffle(order)
        if before:
            before()
            if places[order[0]] == last:  # else `take` does the same
                samplers[order[0]](1)
        for at in order:
            taken[at].append(take(at, repeats[at]) / repeats[at])
    return taken


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """An interval that has the true median with a probability of 95 % or more.

    The k-th smallest and k-th largest value, for the largest k with P(fewer than k heads in as
    many tosses as there are values) at most 2.5 %: no assumption about how the values are
    distributed. Fewer than 6 values bound nothing.
    """
    ordered, n = sorted(values), len(values)
    below, term, k = 0, 1, 0  # counts of the 2^n outcomes: fewer than k heads, exactly k heads
    while 40 * (below + term) <= 2**n:
        below, term, k = below + term, term * (n - k) // (k + 1), k + 1
    return (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)


@dataclass(frozen=True)
class Quantiles:
    """Of the samples of one side."""

    p10: float
    p50: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """Between neighbors, in proportion, as NumPy's default."""
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(tenths[0], tenths[4], tenths[8])


@dataclass(frozen=True)
class Medians:
    """Median seconds a call of each side, over `samples` samples of each."""

    ours: float
    theirs: float
    samples: int

    @property
    def ratio(self) -> float:
        """How many times as long the other side takes."""
        return self.theirs / self.ours


def compare(
    ours: Call, theirs: Call, device: torch.device, seconds: float, least_samples: int = 5
) -> Medians:
    """Times two sides in rounds for about `seconds` after a warm-up."""
    timer = timer_of(device)
    for call in (ours, theirs):
        timer(call, 3)  # state, tables, caches
    mine, other = in_rounds([partial(timer, ours), partial(timer, theirs)], seconds, least_samples)
    return Medians(statistics.median(mine), statistics.median(other), len(mine))


def least_seconds(call: Call, device: torch.device) -> float:
    """Of a call: the best of seven samples, each so long that a GPU never waits for a launch."""
    sample = partial(timer_of(device), call)
    repeats = repeats_of(sample)
    return min(sample(repeats) for _ in range(7)) / repeats


def product_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """Operations a second of torch's product of two matrices."""
    A = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / least_seconds(lambda: A @ A, device)


class Stream:
    """torch's pass over memory: a copy of float64, or a pass in place where that is faster.

    On a CPU a copy costs more: it reads the target, too, before it writes.
    """

    def __init__(self, device: torch.device, elements: int = STREAMED) -> None:
        source = torch.randn(elements, dtype=torch.float64, device=device)
        target = torch.zeros_like(source)
        passes: tuple[Call, ...] = (partial(target.copy_, source), target.neg_)
        fastest = min(passes, key=lambda call: least_seconds(call, device))
        self._bytes = 2 * source.nbytes
        self._sample = partial(timer_of(device), fastest)
        self._repeats = repeats_of(self._sample)
        self.rate = max(self.sample() for _ in range(7))  # bytes a second, read and written

    def sample(self) -> float:
        """The rate at this moment."""
        return self._bytes * self._repeats / self._sample(self._repeats)


def hardware(device: torch.device) -> str:
    """The name of the GPU or the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def now() -> str:
    """The time as the results files write it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def facts(device: torch.device) -> dict[str, object]:
    """The columns of a CSV file that say where and with what a line was measured."""
    return {
        "date": now(),
        "machine": hardware(device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "driver": driver() if device.type == "cuda" else "",
        "commit": commit(),
    }


def machine(device: torch.device) -> dict[str, object]:
    """What a JSON file says about where and with what its times were taken."""
    return {
        "device": hardware(device),
        "threads": torch.get_num_threads(),
        "fusedstep": fusedstep.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
    }


def devices(wanted: str) -> list[torch.device]:
    """The devices to run on; InputError if the wanted one cannot be used."""
    lack = build.CUDA_REASON or ("" if torch.cuda.is_available() else "torch sees no GPU")
    if wanted == "cuda" and lack:
        raise InputError(f"--device: no timings on CUDA: {lack}")
    both = [torch.device("cpu")] + ([] if lack else [torch.device("cuda", 0)])
    return [device for device in both if wanted in ("all", device.type)]
