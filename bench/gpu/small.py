"""A little of everything, to be run under compute-sanitizer: every pair of dtypes, odd sizes."""

from __future__ import annotations

import math
from itertools import product

import torch

import fusedstep

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (0, 1, 255, 1000, 33000)  # the last one has two chunks
OPTIONS = (
    {},
    {"max_norm": 1.0},
    {"max_norm": 1.0, "norm_type": 1.0, "nonfinite": "skip"},
    {"max_norm": 1.0, "norm_type": math.inf, "amsgrad": True},
)


def main(device: str = "cuda") -> None:
    generator = torch.Generator().manual_seed(0)
    for options in OPTIONS:
        params = []
        for at, (param_dtype, grad_dtype, size) in enumerate(product(DTYPES, DTYPES, SIZES)):
            skew = at % 3  # some begin beside an aligned address
            room = torch.randn(2, size + skew, generator=generator)
            param = room[0].to(device, param_dtype)[skew:].detach().requires_grad_()
            param.grad_dtype = None  # any may be assigned
            param.grad = room[1].to(device, grad_dtype)[skew:]
            params.append(param)
        optimizer = fusedstep.AdamW(params, **options)
        for _ in range(2):
            optimizer.step()
        norm = fusedstep.clip_grad_norm_(params, 1.0)
        print(options, "norm", float(norm), float(fusedstep.get_total_norm(params)))


if __name__ == "__main__":
    main()
