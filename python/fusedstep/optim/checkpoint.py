"""Checkpoints: what is saved, what may be loaded, without rounding, and what torch can load."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.fakes import has_values
from fusedstep.optim.distributed import local
from fusedstep.optim.hyperparameters import parameter_labels
from fusedstep.optim.implementation import require_flags
from fusedstep.optim.options import MODE_KEYS, with_choices_of
from fusedstep.optim.sendable import lacks_moments, received, sendable_state_dict
from fusedstep.optim.state import (
    CODES,
    MOMENT,
    OF_MODES,
    StateSpec,
    arrays_of,
    decoded,
    prepare_codes,
    require_moment,
    require_state,
    scale_name,
)

if TYPE_CHECKING:
    from fusedstep.optim.optimizer import FusedOptimizer

State = Mapping[str, Any]  # a parameter's entries


@contextmanager
def saving(optimizer: FusedOptimizer) -> Iterator[None]:
    """Context manager: torch's `state_dict()` returns what collectives can send."""
    # This runs before the user's hooks, which see what is returned.
    hook = optimizer.register_state_dict_post_hook(sendable_state_dict, prepend=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def loading(optimizer: FusedOptimizer) -> Iterator[None]:
    """Context manager: torch's `load_state_dict` refuses what does not fit, and rounds nothing."""
    loaded: dict[str, Any] = {}

    def accept(_: Any, final: dict[str, Any]) -> dict[str, Any]:
        loaded.update(accepted(optimizer, final))
        return dict(loaded)

    # Registered last, this sees the dictionary as the user's own hooks leave it.
    before = optimizer.register_load_state_dict_pre_hook(accept)
    # This runs before the user's hooks see what was loaded.
    after = optimizer.register_load_state_dict_post_hook(
        lambda _: restore(optimizer, loaded), prepend=True
    )
    try:
        yield
    finally:
        before.remove()
        after.remove()


def is_creating_state() -> bool:
    """Whether torch's state_dict functions call step() so that a new optimizer makes its state.

    Gradients and rates are zero there, but a step would still be counted, and with it would end
    what is special about the first: momentum that starts as the gradient, debiased moments.
    """
    module = sys.modules.get("torch.distributed.checkpoint.state_dict")
    frame = sys._getframe() if module is not None else None
    while module is not None and frame is not None:
        if frame.f_code is module._init_optim_state.__code__:
            return True
        frame = frame.f_back
    return False


def accepted(optimizer: FusedOptimizer, final: dict[str, Any]) -> dict[str, Any]:
    """The dictionary with this optimizer's modes; refuses state that does not fit."""
    own, groups = optimizer.param_groups, final["param_groups"]
    if _sizes(groups) != _sizes(own):  # which torch refuses
        return final
    groups = list(map(with_choices_of, own, groups))
    name, state = type(optimizer).__name__, dict(final["state"])
    count = 0
    for g, group in enumerate(groups if optimizer._internals.native else ()):
        require_flags(name, group, f"param_groups[{g}]['{{}}']")
        completed = optimizer._completed(group, g)
        optimizer._values(completed, g)
        spec = optimizer._spec(completed)
        labels = parameter_labels(own[g], first=count)
        count += len(labels)
        for label, param, key in zip(labels, own[g]["params"], group["params"], strict=True):
            if key in state:
                state[key] = received(name, label, state[key], spec)
            entries = state.get(key, {})
            require_loadable(name, label, param, entries, spec)
            # Of a flattened checkpoint, torch's functions read only the names in memory: they take
            # NorMuon's group to a Muon, but not its moments. torch's own groups lack the entry.
            if group.get("normuon_beta2") is not None and lacks_moments(param, entries, spec):
                refuse(name, f"state of {label}['{MOMENT}']", "be present after a step", None)
    return final | {"param_groups": groups, "state": state}


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def restore(optimizer: FusedOptimizer, saved: Mapping[str, Any]) -> None:
    """Replaces entries that torch loaded and rounded or shares, by copies of what was saved."""
    if not optimizer._internals.native:
        return
    for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        spec = optimizer._spec(own)
        for param, key in zip(own["params"], group["params"], strict=True):
            if param in optimizer.state:
                state = optimizer.state[param]
                state.update(restored(param, saved["state"].get(key, {}), state, spec))


def require_loadable(
    function: str, label: str, param: Tensor, saved: State, spec: StateSpec
) -> None:
    """Refuses the saved state of a parameter if it has another mode or shape, or is damaged."""
    arrays = arrays_of(param, spec)
    needed = {array.name for array in arrays}
    steps = _require_count(function, label, saved.get("step"))
    for name, value in saved.items():
        where = f"state of {label}['{name}']"
        if value is None or not isinstance(value, Tensor):
            continue
        if name in OF_MODES and name not in needed:
            refuse(function, where, f"be absent unless {OF_MODES[name]}", value.dtype)
        coded, scale = name in spec.names and value.dtype in CODES, _is_scale(name, spec.names)
        if (coded or scale) and spec.mode.state_dtype != "int8":
            refuse(function, where, "be absent unless state_dtype='int8'", value.dtype)
        if scale and name not in needed:
            refuse(function, where, "be absent without codes", tuple(value.shape))
    for name in spec.names:
        if steps > 0 and name != "step" and saved.get(name) is None:
            refuse(function, f"state of {label}['{name}']", "be present after a step", None)
    require_state(function, label, param, saved, arrays)
    require_moment(function, label, param, saved, spec)


def _is_scale(name: str, states: Sequence[str]) -> bool:
    return name in map(scale_name, states)


def _require_count(function: str, label: str, step: Any) -> float:
    """The number of steps, 0 if they were not counted or the count cannot be read."""
    if step is None:
        return 0
    where = f"state of {label}['step']"
    if isinstance(step, Tensor) and step.numel() != 1:
        refuse(function, where, "have one element", tuple(step.shape))
    if isinstance(step, Tensor) and not has_values(step):
        return 0
    number = float(local(step) if isinstance(step, Tensor) else step)
    if not (number >= 0 and math.isfinite(number) and number == int(number)):
        refuse(function, where, "be a whole number, 0 or more", number)
    return number


def restored(param: Tensor, saved: State, loaded: State, spec: StateSpec) -> dict[str, Tensor]:
    """What has to replace entries that torch loaded: copies of what it rounded or what it shares.

    torch casts to the parameter's dtype, and takes a saved tensor itself where nothing has to be
    cast: the optimizer that it came from would write to it too.
    """
    arrays = {array.name: array for array in arrays_of(param, spec)}
    entries: dict[str, Tensor] = {}
    for name, value in saved.items():
        now, array = loaded.get(name), arrays.get(name)
        if name == "step" and isinstance(value, Real):  # torch makes it on the default device
            entries[name] = torch.tensor(float(value), dtype=torch.float32, device=param.device)
        if not isinstance(value, Tensor) or not isinstance(now, Tensor):
            continue
        if array is not None and (array.is_coded or array.is_scale):
            if array.is_coded:  # which has scales, or gets them
                both = {n: saved[n] for n in (name, scale_name(name)) if n in saved}
                both = {n: part.to(param.device, copy=True) for n, part in both.items()}
                prepare_codes(param, both, array, {})
                entries.update(both)
            continue
        dtype = now.dtype if name == "step" else value.dtype
        if array is not None and value.is_floating_point() and name != "step":
            dtype = array.dtype
        if now.dtype != dtype or _share_memory(now, value):
            entries[name] = value.to(param.device, dtype, copy=True)
    return entries


def _share_memory(a: Tensor, b: Tensor) -> bool:
    a, b = local(a), local(b)
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def exported(optimizer: FusedOptimizer) -> dict[str, Any]:
    """The optimizer's state_dict() in the form of torch's class of the same name."""
    state_dict = optimizer.state_dict()
    specs = {
        key: optimizer._spec(group)
        for group in state_dict["param_groups"]
        for key in group["params"]
    }
    ours: set[str] = set()
    for kind in type(optimizer).__mro__:
        of_torch = f"{kind.__module__}.".startswith("torch.optim.")  # Muon's is torch.optim itself
        if of_torch and kind is not torch.optim.Optimizer:
            ours |= optimizer.defaults.keys() - kind([torch.zeros(1, 1)]).defaults.keys()
            break
    groups = [
        {
            key: value
            for key, value in group.items()
            if key not in MODE_KEYS and not (key in ours and value == optimizer.defaults[key])
        }
        for group in state_dict["param_groups"]
    ]
    left_out = optimizer._not_in_torch | OF_MODES.keys()
    state = {}
    for key, entries in state_dict["state"].items():
        names = specs[key].names
        there = received(type(optimizer).__name__, f"params[{key}]", entries, specs[key])
        kept = {
            name: _plain(name, there) if name in names else there[name]
            for name in there
            if name not in left_out and not _is_scale(name, names)
        }
        if kept:
            state[key] = kept
    return state_dict | {"state": state, "param_groups": groups}


def _plain(name: str, entries: State) -> Any:
    """An entry, decoded to float32 if it has fewer bits."""
    value = entries[name]
    if isinstance(value, Tensor) and value.dtype in CODES:
        return decoded(value, entries[scale_name(name)])
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
