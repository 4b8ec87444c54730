"""heavyball: steps of many tensors that torch.compile makes; state in float32 or bfloat16.

Its epsilon is the least that the root may be, where torch adds it. Bias corrections are computed in
float32, which gives results of four digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import heavyball
import torch
from torch.optim import Optimizer

from bench.case import Side, Work
from bench.peers.steps import MOST_COMPILED, arguments, lift_recompile_limit, optimizer_side

ADAM = ("lr", "betas", "eps")
RULES: dict[str, tuple[Callable[..., Optimizer], tuple[str, ...]]] = {
    "adamw": (heavyball.AdamW, (*ADAM, "weight_decay")),
    "adam": (heavyball.AdamW, ADAM),
    "sgd": (heavyball.SGD, ("lr", "momentum")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """float32 parameters; it would take the gradients away unless told not to."""
    if work.rule not in RULES or work.mode not in ("float32", "bfloat16"):
        return
    make, names = RULES[work.rule]
    options = arguments(work, *names)
    if options is None or work.dtype != torch.float32 or len(work.shapes) > MOST_COMPILED:
        return
    if "momentum" in options:
        options["beta"] = options.pop("momentum")
    lift_recompile_limit()
    made = partial(make, consume_grad=False, storage_dtype=work.mode, **options)
    yield optimizer_side("heavyball", work, device, made)
