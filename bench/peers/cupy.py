"""CuPy on a GPU: what anyone could write, a reduction and an elementwise kernel for each tensor.

Written from CuPy's documentation; it has not been run yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cupy
import torch

from bench.case import MAX_NORM, Side, Work, grads_of, side_of
from bench.peers.steps import ADAM, arguments

norm_squared = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = a", "0", "norm_squared")
adamw = cupy.ElementwiseKernel(
    "T p, T m, T v, T g, T scale, T lr, T keep, T beta1, T beta2, T root, T eps",
    "T new_p, T new_m, T new_v",
    """
    T gradient = scale * g;
    new_m = beta1 * m + (1 - beta1) * gradient;
    new_v = beta2 * v + (1 - beta2) * gradient * gradient;
    new_p = keep * p - lr * new_m / (root * sqrt(new_v) + eps);
    """,
    "adamw",
)


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """AdamW in float32."""
    if (work.rule, work.mode, device.type) != ("adamw", "float32", "cuda"):
        return
    options = arguments(work, *ADAM)
    if options is not None and work.dtype == torch.float32:
        yield side(work, device, **options)


def side(
    work: Work, device: torch.device, lr: float, betas: Any, eps: float, weight_decay: float
) -> Side:
    params = work.params(device)
    views = [cupy.from_dlpack(param.detach()) for param in params]
    grads = [cupy.from_dlpack(grad) for grad in grads_of(params)]
    states = [(cupy.zeros_like(view), cupy.zeros_like(view)) for view in views]
    (beta1, beta2), step = betas, 0

    def call() -> None:
        nonlocal step
        step += 1
        numbers = map(
            cupy.float32,
            (lr / (1 - beta1**step), 1 - lr * weight_decay, *betas, (1 - beta2**step) ** -0.5, eps),
        )
        constants = list(numbers)
        with cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream):
            scale = cupy.float32(1)
            if work.clip:
                norm = cupy.sqrt(sum(norm_squared(grad) for grad in grads))
                scale = cupy.minimum(scale, cupy.float32(MAX_NORM) / (norm + cupy.float32(1e-6)))
            for p, (m, v), g in zip(views, states, grads, strict=True):
                adamw(p, m, v, g, scale, *constants, p, m, v)

    kept = 2 * sum(view.nbytes for view in views)
    return side_of("CuPy, two kernels a tensor", call, device, lambda: params, lambda: kept)
