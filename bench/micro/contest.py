"""Times clip + step by torch and by fusedstep in turns, in one process, and takes medians."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case
from .rules import ADAMW, FLOAT32, Mode, Rule

MAX_NORM = 1.0
LEAST_SAMPLE = 2e-3  # seconds; shorter steps are repeated within a sample
Step = Callable[[], object]
Timer = Callable[[Step, int], float]


@dataclass(frozen=True)
class Outcome:
    """Medians in milliseconds a step, over `samples` samples of each side.

    The other side is torch, or our own float32 step where the mode is another.
    """

    case: Case
    ours_ms: float
    their_ms: float
    samples: int
    rule: Rule = ADAMW
    mode: Mode = FLOAT32

    @property
    def ratio(self) -> float:
        return self.their_ms / self.ours_ms

    @property
    def target(self) -> float | None:
        """The ratio that is wanted."""
        name = self.rule.name if self.mode is FLOAT32 else self.mode.name
        return self.case.targets.get(name)

    @property
    def against(self) -> str:
        """The other side, for people."""
        return self.rule.against if self.mode is FLOAT32 else "fusedstep, float32"

    @property
    def floor_bytes(self) -> int:
        """What no implementation can avoid moving."""
        return self.case.floor_bytes(self.rule.states, self.mode.bytes)

    @property
    def gigabytes_per_second(self) -> float:
        """The floor's bytes over our time: what no step can avoid moving, not all that is moved."""
        return self.floor_bytes / self.ours_ms / 1e6


def make_params(case: Case, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Random parameters whose gradients together have about twice the norm they are clipped to."""
    generator = torch.Generator(device).manual_seed(seed)
    scale = 2 * MAX_NORM / math.sqrt(case.parameters)
    params = []
    for shape in case.shapes:
        param, grad = (
            torch.empty(shape, dtype=case.dtype, device=device).normal_(generator=generator)
            for _ in range(2)
        )
        param.grad = grad.mul_(scale)
        params.append(param)
    return params


def torch_step(params: list[Tensor], rule: Rule = ADAMW) -> Step:
    """The way PyTorch documents: clip, which rewrites the gradients, then the step."""
    optimizer = rule.theirs(params, **rule.arguments)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return step


def fused_step(params: list[Tensor], rule: Rule = ADAMW, mode: Mode = FLOAT32) -> Step:
    """The same in one call."""
    return rule.ours(params, **rule.arguments, max_norm=MAX_NORM, **mode.options).step


def cpu_seconds(step: Step, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return time.perf_counter() - begin


def cuda_seconds(step: Step, repeats: int) -> float:
    """Between two events on the device, so that gaps in which it waits for the host count too."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def timer_of(device: torch.device) -> Timer:
    return cuda_seconds if device.type == "cuda" else cpu_seconds


def alternate(
    ours: Step, theirs: Step, timer: Timer, seconds: float, least_samples: int = 5
) -> tuple[list[float], list[float]]:
    """Samples of both sides in turns, as seconds a step, until `seconds` have passed."""
    sides = []
    for step in (ours, theirs):
        timer(step, 3)  # warm up: state, tables, caches
        sides.append((step, max(1, math.ceil(LEAST_SAMPLE / timer(step, 1)))))
    samples: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(samples[0]) < least_samples or time.perf_counter() < end:
        # Who goes first changes with every round: the second may find caches the first has filled.
        for side in (0, 1) if len(samples[0]) % 2 == 0 else (1, 0):
            step, repeats = sides[side]
            samples[side].append(timer(step, repeats) / repeats)
    return samples


def contest(
    case: Case, device: torch.device, seconds: float, rule: Rule = ADAMW, mode: Mode = FLOAT32
) -> Outcome:
    """Times both on their own copies of the same tensors for about `seconds` after warming up."""
    theirs = torch_step if mode is FLOAT32 else fused_step
    samples = alternate(
        fused_step(make_params(case, device), rule, mode),
        theirs(make_params(case, device), rule),
        timer_of(device),
        seconds,
    )
    medians = [1e3 * statistics.median(side) for side in samples]
    return Outcome(case, *medians, len(samples[0]), rule, mode)
