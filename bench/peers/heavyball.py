"""heavyball: steps of many tensors that torch.compile makes; state in float32 or bfloat16.

Its epsilon is the least that the root may be, where torch adds it. Bias corrections are computed in
float32, which gives results of four digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import heavyball
import torch
from torch import Tensor
from torch.optim import Optimizer

from bench.case import Side, Work
from bench.peers.steps import (
    ADAM,
    MOST_COMPILED,
    Classes,
    lift_recompile_limit,
    made,
    optimizer_side,
)


def sgd(params: list[Tensor], momentum: float, **options: Any) -> Optimizer:
    """By torch's names."""
    optimizer: Optimizer = heavyball.SGD(params, beta=momentum, **options)
    return optimizer


CLASSES: Classes = {
    "adamw": (heavyball.AdamW, ADAM),
    "adam": (heavyball.AdamW, ("lr", "betas", "eps")),
    "sgd": (sgd, ("lr", "momentum")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """float32 parameters; it would take the gradients away unless told not to."""
    make = made(CLASSES, work)
    does = work.mode in ("float32", "bfloat16") and work.dtype == torch.float32
    if make and does and len(work.shapes) <= MOST_COMPILED:
        lift_recompile_limit()
        make = partial(make, consume_grad=False, storage_dtype=work.mode)
        yield optimizer_side("heavyball", work, device, make)
