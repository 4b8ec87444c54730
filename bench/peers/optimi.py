"""torch-optimi: a loop on a CPU, Triton on a GPU.

Not its foreach steps, nor weight decay that is not decoupled: both overwrite the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import optimi
import torch
from torch.optim import Optimizer

from bench.case import Side, Work
from bench.peers.steps import arguments, optimizer_side

RULES: dict[str, tuple[Callable[..., Optimizer], tuple[str, ...]]] = {
    "adamw": (optimi.AdamW, ("lr", "betas", "eps", "weight_decay")),
    "adam": (optimi.Adam, ("lr", "betas", "eps")),
    "sgd": (optimi.SGD, ("lr", "momentum")),
    "lion": (optimi.Lion, ("lr", "betas", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Nothing but float32: for bfloat16 parameters it keeps no master but Kahan's correction."""
    if work.rule not in RULES or (work.mode, work.dtype) != ("float32", torch.float32):
        return
    make, names = RULES[work.rule]
    options = arguments(work, *names)
    if options is not None:
        triton = device.type == "cuda"
        yield optimizer_side("optimi", work, device, partial(make, triton=triton, **options))
