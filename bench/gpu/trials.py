"""What CUDA and CPU are compared on: every optimizer, option and form of storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import fusedstep
from bench.gpu.forms import FORMS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Pairs = tuple[tuple[torch.dtype, torch.dtype], ...]  # of a parameter and its gradient
ALL = tuple(product(DTYPES, DTYPES))
ALIKE = (*zip(DTYPES, DTYPES, strict=True), (torch.bfloat16, torch.float32))


@dataclass(frozen=True)
class Trial:
    """An optimizer with options, and the dtypes it is tried on."""

    name: str
    optimizer: Callable[..., Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: Pairs = ALIKE
    loss_scale: bool = False  # GradScaler's attributes are set

    @property
    def meets_infinity(self) -> bool:
        """Whether one step's gradients are not finite."""
        return self.options.get("nonfinite") == "skip"

    @property
    def rests(self) -> bool:
        """Whether some parameters have no gradient in one step: their averages advance alone."""
        return "ema_decay" in self.options


def grad_of(param: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert param.grad is not None
    return param.grad


ADAMW = partial(fusedstep.AdamW, lr=0.01)
# With every state that the rule can have. Muon is left out: its matrix products are cuBLAS's.
RULES: dict[str, Callable[..., Optimizer]] = {
    "Adam": partial(fusedstep.Adam, lr=0.01, weight_decay=0.1, amsgrad=True),
    "RMSprop": partial(fusedstep.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "RMSprop, plain": partial(fusedstep.RMSprop, lr=0.01),
    "SGD": partial(fusedstep.SGD, lr=0.01, momentum=0.9, nesterov=True),
    "SGD, plain": partial(fusedstep.SGD, lr=0.01),
    "Adagrad": partial(fusedstep.Adagrad, lr=0.01, lr_decay=0.1),
    "Lion": partial(fusedstep.Lion, lr=0.01, weight_decay=0.1),
}
STORED: dict[str, Callable[..., Optimizer]] = {
    "AdamW": ADAMW,
    "RMSprop": RULES["RMSprop, plain"],
    "SGD": RULES["SGD"],
}
CLIP = {"max_norm": 1.0}

TRIALS = (
    Trial("no clip", ADAMW, {}, ALL),
    Trial("norm 2", ADAMW, CLIP, ALL),
    Trial("norm 1", ADAMW, CLIP | {"norm_type": 1.0}, ALL),
    Trial("norm inf", ADAMW, CLIP | {"norm_type": math.inf}, ALL),
    Trial("amsgrad, maximize", ADAMW, {"max_norm": 0.5, "amsgrad": True, "maximize": True}, ALL),
    Trial("skip", ADAMW, CLIP | {"nonfinite": "skip"}),
    Trial("loss scale", ADAMW, CLIP, loss_scale=True),
    *(Trial(name, make, CLIP) for name, make in RULES.items()),
    *(
        Trial(
            f"{name}: {form.name}",
            make,
            {**CLIP, "ema_decay": 0.9, **form.options},
            ((form.dtype, form.dtype), (form.dtype, torch.float32)),
        )
        for form in FORMS
        for name, make in STORED.items()
    ),
)
