"""NVIDIA apex on a GPU: fused steps and its clip, both of many tensors a launch.

Written from apex's documentation and source; it has not been run yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from apex.contrib.clip_grad import clip_grad_norm_
from apex.optimizers import FusedAdagrad, FusedAdam, FusedSGD
from torch.optim import Optimizer

from bench.case import Side, Work
from bench.peers.steps import arguments, optimizer_side

ADAM = ("lr", "betas", "eps", "weight_decay")
RULES: dict[str, tuple[str, Callable[..., Optimizer], tuple[str, ...]]] = {
    "adamw": ("FusedAdam", FusedAdam, ADAM),
    "adam": ("FusedAdam", partial(FusedAdam, adam_w_mode=False), ADAM),
    "sgd": ("FusedSGD", FusedSGD, ("lr", "momentum", "dampening", "weight_decay", "nesterov")),
    "adagrad": ("FusedAdagrad", FusedAdagrad, ("lr", "eps", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Nothing but float32 on a GPU."""
    if work.rule not in RULES or device.type != "cuda":
        return
    name, make, names = RULES[work.rule]
    options = arguments(work, *names)
    if options is not None and (work.mode, work.dtype) == ("float32", torch.float32):
        made = partial(make, **options)
        yield optimizer_side(f"apex, {name}", work, device, made, clip_grad_norm_)
