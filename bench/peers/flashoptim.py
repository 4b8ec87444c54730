"""FlashOptim on a GPU: companded 8-bit state, one Triton kernel a tensor, with torch's clip.

Written from FlashOptim's documentation; it has not been run yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from flashoptim import FlashAdam, FlashAdamW, FlashLion

from bench.case import Side, Work
from bench.peers.steps import ADAM, Classes, made, optimizer_side

CLASSES: Classes = {
    "adamw": (FlashAdamW, ADAM),
    "adam": (FlashAdam, ADAM),
    "lion": (FlashLion, ("lr", "betas", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """float32 parameters with 8-bit state, on a GPU."""
    make = made(CLASSES, work)
    if make and (work.mode, work.dtype, device.type) == ("int8", torch.float32, "cuda"):
        yield optimizer_side(f"FlashOptim, {make.func.__name__}", work, device, make)
