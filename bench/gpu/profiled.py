"""What ncu looks at: a norm pass, a step on arrays of one dtype, a step on mixed arrays."""

from __future__ import annotations

from contextlib import nullcontext

import torch

import fusedstep
from bench.case import MAX_NORM, random_params
from bench.gpu.checks import options
from bench.gpu.forms import FORMS
from bench.gpu.timings import QUARTER, sized


def main() -> None:
    scale = options().scale
    mixed = next(form for form in FORMS if form.name == "bfloat16, remainder, int8 state")
    for dtype, settings in ((torch.float32, {}), (mixed.dtype, mixed.options)):
        params = random_params(sized(QUARTER, scale).shapes, dtype, torch.device("cuda", 0))
        step = fusedstep.AdamW(params, max_norm=MAX_NORM, **settings).step
        step()  # makes state and table
        torch.cuda.synchronize()
        with torch.cuda.profiler.profile() if scale == "full" else nullcontext():
            step()
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
