"""The norm of the tensors of one device, of any order: 2, 1 and inf by the kernel, others by torch.

The others are for the namesakes of torch.nn.utils; no step needs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fusedstep.checks import NORM_TYPES
from fusedstep.fakes import register_fake

_AT_ONCE = 1 << 20  # elements that torch converts to float64 at a time


@register_fake("total_norm")
def _(tensors: list[Tensor], norm_type: float = 2.0, grad_scale: Tensor | None = None) -> Tensor:
    return torch.empty((), dtype=torch.float64, device=tensors[0].device)


def norm_of(tensors: Sequence[Tensor], norm_type: float, device: torch.device) -> Tensor:
    """The norm of all elements: 0-d float64 on `device`, where the gapless tensors are.

    As in torch, it is the norm of the tensors' norms: for order 0 the number of tensors that are
    not all zero.
    """
    if norm_type in NORM_TYPES and tensors:
        return cast(Tensor, torch.ops.fusedstep.total_norm(tensors, norm_type))
    norms = [_in_parts(tensor, norm_type) for tensor in tensors if tensor.numel() > 0]
    if norms:
        return _vector_norm(torch.stack(norms), norm_type)
    nothing = math.inf if norm_type < 0 else 0.0  # leaves other norms as they are
    return torch.full((), nothing, dtype=torch.float64, device=device)


def _in_parts(tensor: Tensor, norm_type: float) -> Tensor:
    parts = tensor.as_strided((tensor.numel(),), (1,)).split(_AT_ONCE)
    return _vector_norm(torch.stack([_vector_norm(part, norm_type) for part in parts]), norm_type)


def _vector_norm(x: Tensor, norm_type: float) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(x, norm_type, dtype=torch.float64))
