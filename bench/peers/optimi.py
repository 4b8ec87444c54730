"""torch-optimi: a loop on a CPU, Triton on a GPU.

Not its foreach steps, nor weight decay that is not decoupled: both overwrite the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import optimi
import torch

from bench.case import Side, Work
from bench.peers.steps import ADAM, Classes, made, optimizer_side

CLASSES: Classes = {
    "adamw": (optimi.AdamW, ADAM),
    "adam": (optimi.Adam, ("lr", "betas", "eps")),
    "sgd": (optimi.SGD, ("lr", "momentum")),
    "lion": (optimi.Lion, ("lr", "betas", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Nothing but float32: for bfloat16 parameters it keeps no master but Kahan's correction."""
    make = made(CLASSES, work)
    if make and work.is_float32:
        make = partial(make, triton=device.type == "cuda")
        yield optimizer_side("optimi", work, device, make)
