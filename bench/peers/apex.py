"""NVIDIA apex on a GPU: fused steps and its clip, both of many tensors a launch.

Written from apex's documentation and source; it has not been run yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from apex.contrib.clip_grad import clip_grad_norm_
from apex.optimizers import FusedAdagrad, FusedAdam, FusedSGD

from bench.case import Side, Work
from bench.peers.steps import ADAM, Classes, made, optimizer_side

CLASSES: Classes = {
    "adamw": (FusedAdam, ADAM),
    "adam": (partial(FusedAdam, adam_w_mode=False), ADAM),
    "sgd": (FusedSGD, ("lr", "momentum", "dampening", "weight_decay", "nesterov")),
    "adagrad": (FusedAdagrad, ("lr", "eps", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Nothing but float32 on a GPU."""
    make = made(CLASSES, work)
    if make and work.is_float32 and device.type == "cuda":
        yield optimizer_side(f"apex, {make.func.__name__}", work, device, make, clip_grad_norm_)
