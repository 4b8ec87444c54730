"""FlashOptim on a GPU: companded 8-bit state, one Triton kernel a tensor, with torch's clip.

Written from FlashOptim's documentation; it has not been run yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import flashoptim
import torch

from bench.case import Side, Work
from bench.peers.steps import arguments, optimizer_side

RULES = {
    "adamw": ("FlashAdamW", ("lr", "betas", "eps", "weight_decay")),
    "adam": ("FlashAdam", ("lr", "betas", "eps", "weight_decay")),
    "lion": ("FlashLion", ("lr", "betas", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """float32 parameters with 8-bit state, on a GPU."""
    if work.rule not in RULES or device.type != "cuda":
        return
    title, names = RULES[work.rule]
    options = arguments(work, *names)
    if options is not None and (work.mode, work.dtype) == ("int8", torch.float32):
        make = partial(getattr(flashoptim, title), **options)
        yield optimizer_side(f"FlashOptim, {title}", work, device, make)
