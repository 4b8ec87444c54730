"""What a parameter has beside its gradient: each array's role in the kernels and its dtype."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fusedstep.optim.modes import Mode


class Role(IntEnum):
    """enum Role of kernels/optim/table.h."""

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


class Kept(NamedTuple):
    """What is kept of the parameters of a group; equal ones need the same arrays."""

    names: tuple[str, ...]  # of the rule's states, "step" among them where the rule counts
    never_negative: frozenset[str]  # names of states that may have codes without a sign
    mode: Mode
    average: bool


CODES = (torch.int8, torch.uint8)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a parameter is computed in, and its state kept in where nothing else is asked."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scale_name(name: str) -> str:
    """The entry with the scales of the state `name`, where that is kept in codes."""
    return f"{name}_scale"


def arrays_of(param: Tensor, kept: Kept) -> list[Array]:
    """The arrays that `param` needs, in this order."""
    mode, computed = kept.mode, compute_dtype(param.dtype)
    states = [name for name in kept.names if name != "step"]
    arrays: list[Array] = []
    for k, name in enumerate(states):
        if mode.state_dtype == "int8":
            code = torch.uint8 if name in kept.never_negative else torch.int8
            arrays.append(Array(Role.STATE + k, name, code))
            arrays.append(Array(Role.SCALE + k, scale_name(name), torch.float32))
        else:
            arrays.append(Array(Role.STATE + k, name, mode.state_dtype or computed))
    if mode.master == "float32":
        arrays.append(Array(Role.MASTER, "master", torch.float32))
    elif mode.master == "remainder":
        arrays.append(Array(Role.MASTER, "remainder", torch.int16))
    if kept.average:
        arrays.append(Array(Role.AVERAGE, "ema", computed))
    # The random numbers of an update are told apart by its number.
    rounds = mode.stochastic_rounding or (mode.state_dtype is not None and states)
    if "step" in kept.names or rounds:
        arrays.append(Array(Role.STEP, "step", torch.float32))
    return arrays
