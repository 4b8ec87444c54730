"""A little of everything, to be run under compute-sanitizer: dtypes, rules, forms, odd sizes."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch

import fusedstep

from .forms import FORMS, SMALLEST
from .trials import Pairs

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (0, 1, 255, 1000, 33000)  # the last one has two chunks
ADAMW, CLIP = fusedstep.AdamW, {"max_norm": 1.0}
# Every pair of dtypes; then other rules and what is stored in fewer bits, on one dtype.
PAIRS = tuple(product(DTYPES, DTYPES))
RUNS: tuple[tuple[type, dict[str, Any], Pairs], ...] = (
    (ADAMW, {}, PAIRS),
    (ADAMW, CLIP | {"norm_type": 1.0, "nonfinite": "skip"}, PAIRS),
    (ADAMW, CLIP | {"norm_type": math.inf, "amsgrad": True}, PAIRS),
    (fusedstep.RMSprop, CLIP | {"momentum": 0.9, "centered": True}, PAIRS[:1]),
    *((ADAMW, {**CLIP, **form.options}, ((form.dtype, form.dtype),)) for form in FORMS),
    (ADAMW, {"ema_decay": 0.9, **SMALLEST.options}, ((SMALLEST.dtype, torch.float32),)),
)


def main(device: str = "cuda") -> None:
    generator = torch.Generator().manual_seed(0)
    for optimizer, options, pairs in RUNS:
        params = []
        for at, ((param_dtype, grad_dtype), size) in enumerate(product(pairs, SIZES)):
            skew = at % 3  # some begin beside an aligned address
            room = torch.randn(2, size + skew, generator=generator)
            param = room[0].to(device, param_dtype)[skew:].detach().requires_grad_()
            param.grad_dtype = None  # any may be assigned
            param.grad = room[1].to(device, grad_dtype)[skew:]
            params.append(param)
        step = optimizer(params, **options).step
        for _ in range(2):
            step()
        norm = fusedstep.clip_grad_norm_(params, 1.0)
        print(options, "norm", float(norm), float(fusedstep.get_total_norm(params)))


if __name__ == "__main__":
    main()
