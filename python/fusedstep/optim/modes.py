"""How a parameter group keeps parameters and state: the modes, and what they ask of a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.distributed import is_dtensor

STATE_DTYPES = (None, torch.bfloat16, "int8")
MASTERS = (None, "float32", "remainder")


class Mode(NamedTuple):
    """The options that a parameter group may have otherwise than the others."""

    state_dtype: torch.dtype | str | None = None
    master: str | None = None
    stochastic_rounding: bool = False

    def of(self, group: Mapping[str, Any]) -> Mode:
        """This mode, but for what `group` says itself."""
        if group.keys().isdisjoint(KEYS):
            return self
        return Mode(*(group.get(key, value) for key, value in zip(KEYS, self, strict=True)))


KEYS = Mode._fields


def require_mode(function: str, mode: Mode, where: str = "{}") -> Mode:
    """The mode with None for torch.float32; `where` makes a message's argument from a key."""
    state_dtype, master, stochastic = mode
    if state_dtype == torch.float32:
        state_dtype = None
    if state_dtype not in STATE_DTYPES:
        must = "be None, torch.bfloat16 or 'int8'"
        refuse(function, where.format("state_dtype"), must, repr(state_dtype))
    if master not in MASTERS:
        refuse(function, where.format("master"), "be None, 'float32' or 'remainder'", repr(master))
    if not isinstance(stochastic, bool):
        must, got = "be True or False", repr(stochastic)
        refuse(function, where.format("stochastic_rounding"), must, got, TypeError)
    if stochastic and master is not None:
        must = f"be False where master={master!r} keeps what rounding loses"
        refuse(function, where.format("stochastic_rounding"), must, stochastic)
    return Mode(state_dtype, master, stochastic)


def require_mode_of(function: str, label: str, param: Tensor, mode: Mode) -> None:
    """Refuses a parameter that cannot be kept so."""
    why = None
    if mode.master is not None:
        why = f"master={mode.master!r}"
    elif mode.stochastic_rounding:
        why = "stochastic_rounding=True"
    if why is not None and param.dtype != torch.bfloat16:
        refuse(function, label, f"be bfloat16 where {why}", param.dtype)
    if mode.state_dtype is not None and param.dtype == torch.float64:
        must = f"not be float64 where state_dtype={mode.state_dtype!r}"
        refuse(function, label, must, param.dtype)
    if mode.state_dtype == "int8" and is_dtensor(param):
        must = "be a plain tensor where state_dtype='int8', whose scales have no shards"
        refuse(function, label, must, "a DTensor", TypeError)


def with_mode_of(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The group `saved` of a checkpoint, but with what the group `own` says of its mode."""
    kept = {key: value for key, value in saved.items() if key not in KEYS}
    return kept | {key: own[key] for key in KEYS if key in own}
