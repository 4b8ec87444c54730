"""What a parameter has beside its gradient: each array's role in the kernels and its dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Role(IntEnum):
    """enum Role of kernels/common/table.h."""

    STATE = 0  # and the next two
    SCALE = 3  # and the next two
    MASTER = 6
    AVERAGE = 7
    STEP = 8


@dataclass(frozen=True)
class Array:
    """An entry of a parameter's state that the kernels read and write."""

    role: int
    name: str
    dtype: torch.dtype


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a parameter is computed in, and its state kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def arrays_of(param: Tensor, names: Sequence[str]) -> list[Array]:
    """The arrays that `param` needs for a rule with these entries of state, in this order."""
    states = [name for name in names if name != "step"]
    dtype = compute_dtype(param.dtype)
    arrays = [Array(Role.STATE + k, name, dtype) for k, name in enumerate(states)]
    if "step" in names:
        arrays.append(Array(Role.STEP, "step", torch.float32))
    return arrays
