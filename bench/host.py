"""The group "host": what a step costs beside its elements: tensors of one element, on a CPU.

    python -m bench --cases 'host/*' --threads 1

Every step gets gradients that lie elsewhere, as backward makes them. `python -m bench.instructions`
counts the instructions of such steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from bench.case import Case, Side
from bench.measure import Call
from bench.step_cases import ADAMW, fused_step, torch_step

COUNTS = (1, 6, 150, 400, 2000)  # tensors
TURNS = 3  # sets of gradients, which take turns


class Loop:
    """Steps over `count` tensors, each with other gradients than the one before."""

    def __init__(self, make: Callable[[list[Tensor]], Call], count: int) -> None:
        self.params = [torch.zeros(1) for _ in range(count)]
        self._grads = cycle([[torch.ones(1) for _ in range(count)] for _ in range(TURNS)])
        self.exchange()
        self.step = make(self.params)

    def exchange(self) -> None:
        """The next gradients for the old ones."""
        for param, grad in zip(self.params, next(self._grads), strict=True):
            param.grad = grad

    def seconds(self, steps: int) -> float:
        """Of so many steps, without the exchanges."""
        total = 0.0
        for _ in range(steps):
            self.exchange()
            begin = time.perf_counter()
            self.step()
            total += time.perf_counter() - begin
        return total


def sides_of(count: int, device: torch.device) -> Iterator[Side]:
    for provider, make in (("fusedstep", fused_step), (ADAMW.against, torch_step)):
        loop = Loop(make, count)
        yield Side(provider, loop.seconds, partial(list, loop.params))


def cases() -> Iterator[Case]:
    for count in COUNTS:
        yield Case(
            name=f"host/adamw/{count}",
            tensors=count,
            elements=count,
            dtype="float32",
            mode="float32",
            least_bytes=0,
            operations=0,
            sides=partial(sides_of, count),
            tolerance=1e-3,
            devices=("cpu",),
        )
