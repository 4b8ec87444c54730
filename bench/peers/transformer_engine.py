"""TransformerEngine on a GPU: its fused Adam and SGD, with torch's clip before them.

Written from TransformerEngine's documentation and source; it has not been run yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from transformer_engine.pytorch.optimizers import FusedAdam, FusedSGD

from bench.case import Side, Work
from bench.peers.steps import ADAM, Classes, made, optimizer_side

CLASSES: Classes = {
    "adamw": (FusedAdam, ADAM),
    "adam": (partial(FusedAdam, adam_w_mode=False), ADAM),
    "sgd": (FusedSGD, ("lr", "momentum", "dampening", "weight_decay", "nesterov")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """float32 parameters; or bfloat16 ones with a float32 master, which Adam alone keeps."""
    make = made(CLASSES, work)
    if make is None or device.type != "cuda":
        return
    if work.mode == "master" and make.func is FusedAdam:
        make = partial(make, master_weights=True)
    elif not work.is_float32:
        return
    yield optimizer_side(f"TransformerEngine, {make.func.__name__}", work, device, make)
