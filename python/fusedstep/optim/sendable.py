"""State in checkpoints: in dtypes that gloo, NCCL and FSDP1 can send, bit for bit.

Where an entry has another format in another mode, it has another name: torch.distributed.checkpoint
copies what has the same name and shape without looking at the dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.optim.distributed import is_flattened, local, placed_like, require_placement_of
from fusedstep.optim.state import (
    CODES,
    MOMENT,
    OF_MODES,
    StateSpec,
    as_moment,
    decoded,
    scale_name,
)

if TYPE_CHECKING:
    from fusedstep.optim.optimizer import FusedOptimizer

WHOLE = "remainder"  # as the kernels read and write it: int16, which neither gloo nor NCCL sends
# Its bytes. The dot: a flattened checkpoint of torch's looks entries up by their names in memory,
# and returns what is listed below such a name as a dictionary, {"high": ..., "low": ...}.
HALVES = (f"{WHOLE}.high", f"{WHOLE}.low")
# Entries of integers, which FSDP1 has in float32. A correction is uint8, which everything but
# FSDP1 sends as it is.
INTEGERS = {WHOLE: torch.int16, "correction": torch.uint8}


def codes_name(name: str) -> str:
    """What the codes of the state `name` are called in a checkpoint."""
    return f"{name}.codes"


def sendable_state_dict(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any]:
    """A hook of `state_dict()`: the same with all entries as `sendable` has them."""
    ours, state = cast("FusedOptimizer", optimizer), dict(state_dict["state"])
    for own, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        spec = ours._spec(own)
        for param, key in zip(own["params"], saved["params"], strict=True):
            if key in state:
                state[key] = sendable(param, state[key], spec)
    return state_dict | {"state": state}


def sendable(param: Tensor, entries: dict[str, Any], spec: StateSpec) -> dict[str, Any]:
    """The entries of a parameter as `state_dict()` returns them.

    A remainder becomes two uint8 tensors with its shape and placements. Codes stay codes where
    their scales lie in rows, so that each part of a parameter has a part of both. Elsewhere they
    are decoded, and are encoded to the same codes again: as a DTensor, the parameter has float32
    state. So the format follows from the whole parameter, however many ranks there are. FSDP1 sends
    no integers and only one dtype for each parameter: there, all entries become float32, which is
    exact. Moments that NorMuon has not begun yet are sent as zeros, as a step would make them:
    loading refuses momentum without them.
    """
    if is_flattened(param):
        return {k: v.float() if _is_narrow(k, v) else v for k, v in entries.items()}
    sent = dict(entries)
    for name in spec.names:
        codes, scales = entries.get(name), entries.get(scale_name(name))
        if isinstance(codes, Tensor) and codes.dtype in CODES and isinstance(scales, Tensor):
            if scales.dim() > 1:
                sent = {codes_name(name) if k == name else k: v for k, v in sent.items()}
            else:
                sent = _without(sent, scale_name(name)) | {name: decoded(codes, scales)}
    whole = entries.get(WHOLE)
    if isinstance(whole, Tensor) and whole.dtype == torch.int16:
        bits = local(whole)
        halves = (placed_like(whole, half.to(torch.uint8)) for half in (bits >> 8, bits))
        sent = _without(sent, WHOLE) | dict(zip(HALVES, halves, strict=True))
    if spec.division is not None and lacks_moments(param, entries, spec):
        sent[MOMENT] = as_moment(param, spec.division)
    return sent


def lacks_moments(param: Tensor, entries: Mapping[str, Any], spec: StateSpec) -> bool:
    """Whether a parameter of NorMuon's has momentum, but its rows have no second moments."""
    if not spec.moments or param.numel() == 0 or entries.get(MOMENT) is not None:
        return False
    return any(entries.get(name) is not None for name in spec.names)


def _is_narrow(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (INTEGERS.get(name), torch.bfloat16)


def _without(entries: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}


def received(
    function: str, label: str, entries: Mapping[str, Any], spec: StateSpec
) -> Mapping[str, Any]:
    """Entries with the names and integers that they have in memory; `entries` itself if they do.

    Refuses parts that do not match.
    """
    entries = _unnested(entries, spec)
    for name in spec.names:
        if codes_name(name) in entries:
            if name in entries:  # torch's state_dict functions keep what a checkpoint lacks
                where = f"state of {label}['{name}']"
                refuse(function, where, "be absent beside codes", type(entries[name]).__name__)
            entries = {name if k == codes_name(name) else k: v for k, v in entries.items()}
    for name, dtype in INTEGERS.items():
        value = entries.get(name)
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            entries = {**entries, name: value.to(dtype)}
    return _with_whole(function, label, entries)


def _unnested(entries: Mapping[str, Any], spec: StateSpec) -> Mapping[str, Any]:
    """Entries of a flattened checkpoint, where {} stands for what there is not."""
    ours = {"step", MOMENT, *OF_MODES, *spec.names, *map(scale_name, spec.names)}
    nested = [name for name in ours if isinstance(entries.get(name), Mapping)]
    if not nested:
        return entries
    parts = {f"{name}.{part}": v for name in nested for part, v in entries[name].items()}
    return _without(entries, *nested) | parts


def _with_whole(function: str, label: str, entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Entries with the remainder whole instead of its halves."""
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
