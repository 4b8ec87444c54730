"""TransformerEngine on a GPU: its fused Adam and SGD, with torch's clip before them.

Written from TransformerEngine's documentation and source; it has not been run yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.optim import Optimizer
from transformer_engine.pytorch.optimizers import FusedAdam, FusedSGD

from bench.case import Side, Work
from bench.peers.steps import arguments, optimizer_side

ADAM = ("lr", "betas", "eps", "weight_decay")
RULES: dict[str, tuple[str, Callable[..., Optimizer], tuple[str, ...]]] = {
    "adamw": ("FusedAdam", FusedAdam, ADAM),
    "adam": ("FusedAdam", partial(FusedAdam, adam_w_mode=False), ADAM),
    "sgd": ("FusedSGD", FusedSGD, ("lr", "momentum", "dampening", "weight_decay", "nesterov")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """float32 parameters; or bfloat16 ones with a float32 master, which Adam alone keeps."""
    if work.rule not in RULES or device.type != "cuda":
        return
    name, make, names = RULES[work.rule]
    options = arguments(work, *names)
    if options is None:
        return
    if work.mode == "master" and name == "FusedAdam":
        options["master_weights"] = True
    elif (work.mode, work.dtype) != ("float32", torch.float32):
        return
    yield optimizer_side(f"TransformerEngine, {name}", work, device, partial(make, **options))
