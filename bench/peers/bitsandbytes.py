"""bitsandbytes: 32-bit state and block-wise 8-bit state; on a CPU in plain calls of torch.

Tensors of fewer than 4096 elements keep 32-bit state.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from bitsandbytes.optim import SGD, Adagrad, Adam, AdamW, Lion, RMSprop

from bench.case import Side, Work
from bench.peers.steps import ADAM, Classes, made, optimizer_side

BITS = {"float32": 32, "int8": 8}
# What it does not refuse it may ignore: momentum and `centered` of RMSprop, weight decay that is
# not decoupled of Adam, nesterov and dampening of SGD, lr_decay of Adagrad.
CLASSES: Classes = {
    "adamw": (AdamW, ADAM),
    "adam": (Adam, ("lr", "betas", "eps")),
    "sgd": (SGD, ("lr", "momentum", "weight_decay")),
    "rmsprop": (RMSprop, ("lr", "alpha", "eps", "weight_decay")),
    "adagrad": (Adagrad, ("lr", "eps", "weight_decay")),
    "lion": (Lion, ("lr", "betas", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """State of 32 bits or 8; SGD with momentum alone."""
    make, bits = made(CLASSES, work), BITS.get(work.mode)
    if make and bits and work.dtype == torch.float32 and make.keywords.get("momentum") != 0:
        make = partial(make, optim_bits=bits)
        yield optimizer_side(f"bitsandbytes, {bits}-bit", work, device, make)
