"""State in checkpoints: in dtypes that gloo, NCCL and FSDP1 can send, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.optim.distributed import is_flattened, local, placed_like, require_placement_of

WHOLE = "remainder"  # as the kernels read and write it: int16, which neither gloo nor NCCL sends
# Its bytes. The dot: a flattened checkpoint of torch's looks entries up by their names in memory,
# and returns what is listed below such a name as a dictionary, {"high": ..., "low": ...}.
HALVES = (f"{WHOLE}.high", f"{WHOLE}.low")
# Entries of integers, which FSDP1 has in float32. A correction has 8 bits, as all others send them.
INTEGERS = {WHOLE: torch.int16, "correction": torch.uint8}


def sendable_state_dict(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any]:
    """A hook of `state_dict()`: the same with all entries as `sendable` has them."""
    state = dict(state_dict["state"])
    for own, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        for param, key in zip(own["params"], saved["params"], strict=True):
            if key in state:
                state[key] = sendable(param, state[key])
    return state_dict | {"state": state}


def sendable(param: Tensor, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a parameter as `state_dict()` returns them.

    A remainder becomes two uint8 tensors with its shape and placements. FSDP1 sends no integers and
    only one dtype for each parameter: there, all entries become float32, which is exact.
    """
    if is_flattened(param):
        return {k: v.float() if _is_narrow(k, v) else v for k, v in entries.items()}
    whole = entries.get(WHOLE)
    if not isinstance(whole, Tensor) or whole.dtype != torch.int16:
        return entries
    bits = local(whole)
    halves = (placed_like(whole, half.to(torch.uint8)) for half in (bits >> 8, bits))
    return _without(entries, WHOLE) | dict(zip(HALVES, halves, strict=True))


def _is_narrow(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (INTEGERS.get(name), torch.bfloat16)


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _without(entries: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}


def received(function: str, label: str, entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Entries with the remainder whole and integers as such; `entries` itself if they are so.

    Refuses halves that do not match.
    """
    whole = entries.get(WHOLE)
    floats = {name for name in INTEGERS if _is_float32(entries.get(name))}
    if floats:
        return {k: v.to(INTEGERS[k]) if k in floats else v for k, v in entries.items()}
    if isinstance(whole, Mapping):
        nested = {f"{WHOLE}.{half}": value for half, value in whole.items()}
        entries = _without(entries, WHOLE) | nested
    if not any(name in entries for name in HALVES):
        return entries
    for name in HALVES:
        half, where = entries.get(name), f"state of {label}['{name}']"
        if not isinstance(half, Tensor):
            refuse(function, where, "be present with the other half", half)
        if half.dtype != torch.uint8:
            refuse(function, where, "be torch.uint8", half.dtype, TypeError)
    high, low = (entries[name] for name in HALVES)
    where = f"state of {label}['{HALVES[1]}']"
    if high.shape != low.shape:
        refuse(function, where, f"have shape {tuple(high.shape)}, as the other", tuple(low.shape))
    require_placement_of(function, where, high, low)
    bits = local(high).to(torch.int16) << 8 | local(low)
    return _without(entries, WHOLE, *HALVES) | {WHOLE: placed_like(high, bits)}
