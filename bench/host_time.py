"""The group "host": what a step costs beside its elements: tensors of one element, on a CPU.

Every step gets gradients that lie elsewhere, as backward makes them. `python -m bench.instructions`
counts the instructions of the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.case import Case, Side
from bench.host import COUNTS, Loop
from bench.measure import Call
from bench.step_cases import ADAMW, fused_step, torch_step


def side_of_steps(provider: str, make: Callable[[list[Tensor]], Call], count: int) -> Side:
    """Steps over so many tensors; a sample leaves out the exchange of the gradients."""
    loop = Loop(make, count)
    return Side(
        provider, lambda calls: sum(loop.seconds() for _ in range(calls)), lambda: loop.params
    )


def sides_of(count: int, device: torch.device) -> Iterator[Side]:
    yield side_of_steps("fusedstep", fused_step, count)
    yield side_of_steps(ADAMW.against, torch_step, count)


def cases() -> Iterator[Case]:
    for count in COUNTS:
        yield Case(
            group="host",
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
