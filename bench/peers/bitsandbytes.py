"""bitsandbytes: 32-bit state and block-wise 8-bit state; on a CPU in plain calls of torch.

Tensors of fewer than 4096 elements keep 32-bit state.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import bitsandbytes.optim
import torch

from bench.case import Side, Work
from bench.peers.steps import arguments, optimizer_side

BITS = {"float32": 32, "int8": 8}
# What it does not refuse it may ignore: momentum and `centered` of RMSprop, weight decay that is
# not decoupled of Adam, nesterov and dampening of SGD, lr_decay of Adagrad.
RULES = {
    "adamw": ("AdamW", ("lr", "betas", "eps", "weight_decay")),
    "adam": ("Adam", ("lr", "betas", "eps")),
    "sgd": ("SGD", ("lr", "momentum", "weight_decay")),
    "rmsprop": ("RMSprop", ("lr", "alpha", "eps", "weight_decay")),
    "adagrad": ("Adagrad", ("lr", "eps", "weight_decay")),
    "lion": ("Lion", ("lr", "betas", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """State of 32 bits or 8; SGD with momentum alone."""
    if work.rule not in RULES or work.mode not in BITS or work.dtype != torch.float32:
        return
    title, names = RULES[work.rule]
    options = arguments(work, *names)
    if options is None or options.get("momentum") == 0:
        return
    make = partial(getattr(bitsandbytes.optim, title), optim_bits=BITS[work.mode], **options)
    yield optimizer_side(f"bitsandbytes, {BITS[work.mode]}-bit", work, device, make)
