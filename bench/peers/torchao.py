"""torchao's AdamW and Adam with state in 8 bits, 4 bits or float8: one compiled call a tensor.

Tensors of fewer than 4096 elements, or of a number that its blocks do not divide, keep float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torchao.optim

from bench.case import Side, Work
from bench.peers.steps import ADAM, arguments, optimizer_side

TITLES = {"adamw": "AdamW", "adam": "Adam"}
SMALLER = {"8-bit": "8bit", "4-bit": "4bit", "float8": "Fp8"}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Of `int8` cases; 4 bits and float8 are the nearest that there is to fusedstep's 8."""
    options = arguments(work, *ADAM) if work.rule in TITLES else None
    if options is None or work.mode != "int8":
        return
    for name, suffix in SMALLER.items():
        make = getattr(torchao.optim, TITLES[work.rule] + suffix)
        yield optimizer_side(f"torchao, {name}", work, device, partial(make, **options))
