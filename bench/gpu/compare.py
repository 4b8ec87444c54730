"""Where two tensors differ in a bit."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def differing(on_cpu: Tensor, on_gpu: Tensor) -> Tensor:
    """Which elements differ in any bit, on the CPU; a NaN equals any NaN."""
    a, b = on_cpu.detach().contiguous(), on_gpu.detach().cpu().contiguous()
    if a.dtype != b.dtype or a.shape != b.shape:
        raise ValueError(f"{a.dtype} {tuple(a.shape)} is compared with {b.dtype} {tuple(b.shape)}")
    if not a.is_floating_point():
        return a != b
    bits = _BITS[a.element_size()]
    return (a.view(bits) != b.view(bits)) & ~(a.isnan() & b.isnan())
