"""The state of a parameter: which arrays it needs, their checks, and how missing ones are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse
from fusedstep.fakes import register_fake
from fusedstep.optim.blocks import (
    blocks_of,
    has_codes,
    rows_of,
    scales_in_rows,
    scales_shape,
)
from fusedstep.optim.distributed import (
    is_dtensor,
    local,
    placed_like,
    require_mesh_of,
    require_placement_of,
)
from fusedstep.optim.matrices import Division
from fusedstep.optim.memory import gapless, in_layout_of, is_plain, memory_layout
from fusedstep.optim.options import Mode


class Role(IntEnum):
    """What an array is for, as in enum Role of kernels/optim/table.h."""

    STATE = _C.ROLES["STATE"]  # of the first state; the next roles are of the others
    SCALE = _C.ROLES["SCALE"]  # of the first state's scales
    MASTER = _C.ROLES["MASTER"]
    AVERAGE = _C.ROLES["AVERAGE"]
    STEP = _C.ROLES["STEP"]


@dataclass(frozen=True)
class Array:
    """An entry of a parameter's state that the kernels read and write."""

    role: int
    name: str
    dtype: torch.dtype

    @property
    def is_coded(self) -> bool:
        """Whether it is a state of 8-bit codes, which have scales."""
        return self.role < Role.SCALE and self.dtype in CODES

    @property
    def is_scale(self) -> bool:
        """Whether it has the scales of a state."""
        return Role.SCALE <= self.role < Role.MASTER


class StateSpec(NamedTuple):
    """What state the parameters of a group have; equal specs need the same arrays."""

    names: tuple[str, ...]  # of the rule's states, with "step" where the rule counts
    never_negative: frozenset[str]  # states whose codes need no sign
    mode: Mode
    average: bool
    division: Division | None = None  # of parameters that are made of matrices
    moments: bool = False  # of these matrices' rows


CODES = (torch.int8, torch.uint8)
MOMENT = "second_momentum_buffer"  # NorMuon's, which no table lists as a state: normuon.py
# Entries that exist only with an option.
OF_MODES = {
    "master": "master='float32'", "remainder": "master='remainder'",
    "correction": "master='correction'", "ema": "ema_decay is set",
}  # fmt: skip


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a parameter is computed in, and the default dtype of its state."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scale_name(name: str) -> str:
    """The entry with the scales of the state `name` if it is stored as codes."""
    return f"{name}_scale"


def arrays_of(param: Tensor, spec: StateSpec) -> list[Array]:
    """The arrays that `param` needs, in this order."""
    mode, computed = spec.mode, compute_dtype(param.dtype)
    states = [name for name in spec.names if name != "step"]
    coded = mode.state_dtype == "int8" and has_codes(param)
    arrays: list[Array] = []
    for k, name in enumerate(states):
        if coded:
            code = torch.uint8 if name in spec.never_negative else torch.int8
            arrays.append(Array(Role.STATE + k, name, code))
            arrays.append(Array(Role.SCALE + k, scale_name(name), torch.float32))
        else:
            stored = mode.state_dtype if isinstance(mode.state_dtype, torch.dtype) else computed
            arrays.append(Array(Role.STATE + k, name, stored))
    if mode.master == "float32":
        arrays.append(Array(Role.MASTER, "master", torch.float32))
    elif mode.master == "remainder":
        arrays.append(Array(Role.MASTER, "remainder", torch.int16))
    elif mode.master == "correction":
        arrays.append(Array(Role.MASTER, "correction", torch.uint8))
    if spec.average:
        arrays.append(Array(Role.AVERAGE, "ema", computed))
    # The number of the step is a key of the random numbers.
    rounds_states = mode.state_dtype is not None and states
    if "step" in spec.names or mode.rounds_params or rounds_states:
        arrays.append(Array(Role.STEP, "step", torch.float32))
    return arrays


# The initial value of a missing entry of a parameter's state, from its name and the other entries.
Initial = Callable[[str, Mapping[str, Any]], float]


def require_state(
    function: str, label: str, param: Tensor, state: Mapping[str, Any], arrays: Sequence[Array]
) -> None:
    """Refuses existing entries that cannot be converted to the form of `arrays`."""
    for array in arrays:
        value, where = state.get(array.name), f"state of {label}['{array.name}']"
        if isinstance(value, Tensor) and value.is_meta:
            refuse(function, where, "have values", "a tensor on meta")
        if value is None or array.role == Role.STEP:
            continue
        if not isinstance(value, Tensor):
            refuse(function, where, "be a tensor", type(value).__name__, TypeError)
        if array.is_scale:
            codes = state.get(array.name.removesuffix(scale_name("")))
            if codes is None or codes.dtype not in CODES:
                refuse(function, where, "be absent without codes", tuple(value.shape))
            continue
        require_entry_like(function, where, param, value)
        floating = array.role != Role.MASTER or array.dtype.is_floating_point
        if value.dtype != array.dtype and not (floating and value.is_floating_point()):
            kinds = f"{array.dtype} or floating-point" if array.is_coded else array.dtype
            refuse(function, where, f"be {kinds}", value.dtype, TypeError)
        if array.is_coded and value.dtype in CODES:
            _require_scales(function, label, param, array.name, state)


def require_entry_like(function: str, where: str, param: Tensor, value: Tensor) -> None:
    """Refuses an entry with another shape than its parameter, or with other placements."""
    if value.shape != param.shape:
        must = f"have its parameter's shape {tuple(param.shape)}"
        refuse(function, where, must, tuple(value.shape))
    require_placement_of(function, where, param, value)


def _require_scales(
    function: str, label: str, param: Tensor, name: str, state: Mapping[str, Any]
) -> None:
    scales, where = state.get(scale_name(name)), f"state of {label}['{scale_name(name)}']"
    if not isinstance(scales, Tensor):
        refuse(function, where, "be present with 8-bit codes", scales)
    if scales.dtype != torch.float32:
        refuse(function, where, "be torch.float32", scales.dtype, TypeError)
    require_placement_of(function, where, param, scales)
    # Of a plain tensor, also those of codes in another order of memory, and of older checkpoints.
    counted = (blocks_of(param.numel()),)
    rows = scales_in_rows(param.shape) if rows_of(param.shape) else counted
    if scales.shape != rows and (is_dtensor(param) or scales.shape != counted):
        refuse(function, where, f"have shape {scales_shape(param)}", tuple(scales.shape))


def require_moment(
    function: str, label: str, param: Tensor, state: Mapping[str, Any], spec: StateSpec
) -> None:
    """Refuses moments of a parameter's rows that do not fit it."""
    moment, where = state.get(MOMENT), f"state of {label}['{MOMENT}']"
    if not spec.moments or spec.division is None or moment is None:
        return
    if not isinstance(moment, Tensor) or not moment.is_floating_point():
        got = moment.dtype if isinstance(moment, Tensor) else type(moment).__name__
        refuse(function, where, "be a floating-point tensor", got, TypeError)
    shape = spec.division.column_of(param.shape)
    if tuple(moment.shape) != shape:
        refuse(function, where, f"have shape {shape}", tuple(moment.shape))
    require_mesh_of(function, where, param, moment)
    if is_dtensor(param) and is_dtensor(moment):
        placements = spec.division.column_placements(param.placements, param.dim())
        if moment.placements != placements:
            must = f"be placed as its parameter's rows, {placements}"
            refuse(function, where, must, moment.placements)


def as_moment(param: Tensor, division: Division, value: Tensor | None = None) -> Tensor:
    """Moments of a parameter's rows as they are kept: a checkpoint's, or zeros.

    Those of a DTensor lie where its rows do. Ranks that share a row hold the same.
    """
    here, dtype = local(param), compute_dtype(param.dtype)
    if value is None:
        shard = torch.zeros(division.column_of(here.shape), dtype=dtype, device=here.device)
    else:
        shard = local(value).to(here.device, dtype).contiguous()
        if shard is local(value):
            return value
    if not is_dtensor(param):
        return shard
    placements = division.column_placements(param.placements, param.dim())
    return placed_like(param, shard, division.column_of(param.shape), placements)


def prepare_state(
    param: Tensor, state: dict[str, Any], arrays: Sequence[Array], initial: Initial
) -> None:
    """Creates missing entries and converts the rest, which `require_state` has checked."""
    first = {a.name: initial(a.name, state) for a in arrays if state.get(a.name) is None}
    for array in arrays:
        if array.role == Role.STEP:
            _prepare_step(param, state, first)
        elif array.is_coded:
            prepare_codes(param, state, array, first)
        elif not array.is_scale:  # those came with the codes
            _prepare_array(param, state, array, first)


def _prepare_step(param: Tensor, state: dict[str, Any], first: Mapping[str, float]) -> None:
    step = state.get("step")
    if step is None:
        step = torch.full((), first["step"], dtype=torch.float32, device=param.device)
    if not isinstance(step, Tensor):
        step = torch.tensor(float(step), dtype=torch.float32, device=param.device)
    same = step.dtype == torch.float32 and step.device == param.device
    fits = same and step.numel() == 1 and not step.is_neg()
    state["step"] = step if fits else step.to(param.device, torch.float32).reshape(())


def _prepare_array(
    param: Tensor, state: dict[str, Any], array: Array, first: Mapping[str, float]
) -> None:
    old, shard = state.get(array.name), local(param)
    if old is not None:
        old = local(old)
        same = old.dtype == array.dtype and old.device == param.device
        if same and is_plain(old, memory_layout(shard)):
            return
    new = torch.empty_like(shard, dtype=array.dtype, memory_format=torch.preserve_format)
    if old is not None:
        new.copy_(old)
    elif array.role >= Role.MASTER and array.dtype.is_floating_point:
        new.copy_(shard)  # a master and an average start as a copy
    else:
        new.fill_(first[array.name])
    state[array.name] = placed_like(param, new)


def prepare_codes(
    param: Tensor, state: dict[str, Any], array: Array, first: Mapping[str, float]
) -> None:
    """Makes the codes and scales of a state, or converts its value, into those of `array`."""
    name, shard = array.name, local(param)
    value: Any = state.get(name)
    scales: Any = state.get(scale_name(name))
    if value is None:  # all elements are equal: one gives every code and scale
        one = torch.tensor(first[name], dtype=torch.float32, device="cpu")
        code, scale = torch.ops.fusedstep.encode_state(one, array.dtype == torch.int8)
        codes = torch.empty_like(shard, dtype=array.dtype).copy_(code)
        of_blocks = scale.to(param.device).repeat(blocks_of(shard.numel()))
        state[name], state[scale_name(name)] = _placed_codes(param, codes, of_blocks)
        return
    if value.dtype not in CODES:
        state[name], state[scale_name(name)] = encoded(param, value, array.dtype)
        return
    codes, of_blocks = local(value), local(scales)
    in_order = of_blocks.dim() == 1 or codes.is_contiguous()
    if not (in_order and is_plain(codes, memory_layout(shard))):
        # Blocks follow memory: another order has other blocks.
        value = decoded(value, scales)
        state[name], state[scale_name(name)] = encoded(param, value, array.dtype)
    elif (
        codes.device != param.device
        or of_blocks.shape != scales_shape(shard)
        or not of_blocks.is_contiguous()
    ):
        codes, of_blocks = codes.to(param.device), of_blocks.to(param.device)
        state[name], state[scale_name(name)] = _placed_codes(param, codes, of_blocks)


def _placed_codes(param: Tensor, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """A shard's codes and scales, placed as `param`; themselves if it is a plain tensor."""
    # Cloned: a view would keep its base alive after the state has moved elsewhere.
    scales = scales.reshape(scales_shape(local(param))).clone()
    return placed_like(param, codes), placed_like(param, scales, scales_shape(param))


def encoded(param: Tensor, value: Tensor, code: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of dtype `code` in the layout of `param`, and their scales, rounded to nearest."""
    shard = in_layout_of(local(param), local(value)).to("cpu", torch.float32)
    codes, scales = torch.ops.fusedstep.encode_state(shard, code == torch.int8)
    return _placed_codes(param, codes.to(param.device), scales.to(param.device))


def decoded(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 values, placed and on the device as `codes`."""
    shard, of_blocks = local(codes).cpu(), local(scales).cpu().contiguous()
    # Scales in rows belong to rows, in whatever order of memory a file has given the codes.
    shard = shard.contiguous() if of_blocks.dim() > 1 else gapless(shard)
    values = torch.ops.fusedstep.decode_state(shard, of_blocks)
    return placed_like(codes, values.to(codes.device))


@register_fake("encode_state")
def _(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    codes = x.new_empty_strided(x.shape, x.stride(), dtype=torch.int8 if signed else torch.uint8)
    return codes, x.new_empty(blocks_of(x.numel()))


@register_fake("decode_state")
def _(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.new_empty_strided(codes.shape, codes.stride(), dtype=torch.float32)
