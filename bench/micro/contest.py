"""Times clip + AdamW by torch and by fusedstep in turns, in one process, and takes medians."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fusedstep

from .cases import Case

MAX_NORM = 1.0
WEIGHT_DECAY = 0.1
LEAST_SAMPLE = 2e-3  # seconds; shorter steps are repeated within a sample
Step = Callable[[], object]
Timer = Callable[[Step, int], float]


@dataclass(frozen=True)
class Outcome:
    """Medians in milliseconds a step, over `samples` samples of each side."""

    case: Case
    ours_ms: float
    torch_ms: float
    samples: int

    @property
    def ratio(self) -> float:
        return self.torch_ms / self.ours_ms

    @property
    def gigabytes_per_second(self) -> float:
        """The floor's bytes over our time: what no step can avoid moving, not all that is moved."""
        return self.case.floor_bytes / self.ours_ms / 1e6


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


def torch_step(params: list[Tensor]) -> Step:
    """The way PyTorch documents: clip, which rewrites the gradients, then the fused step."""
    optimizer = torch.optim.AdamW(params, weight_decay=WEIGHT_DECAY, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return step


def fused_step(params: list[Tensor]) -> Step:
    """The same in one call."""
    return fusedstep.AdamW(params, weight_decay=WEIGHT_DECAY, max_norm=MAX_NORM).step


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


def contest(case: Case, device: torch.device, seconds: float) -> Outcome:
    """Times both on their own copies of the same tensors for about `seconds` after warming up."""
    timer = cuda_seconds if device.type == "cuda" else cpu_seconds
    sides = [make(make_params(case, device)) for make in (fused_step, torch_step)]
    ours, theirs = alternate(*sides, timer, seconds)
    medians = [1e3 * statistics.median(samples) for samples in (ours, theirs)]
    return Outcome(case, *medians, len(ours))
