"""The options that every optimizer has and torch's lack: defaults, meaning, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fusedstep.checks import (
    refuse,
    require_beta,
    require_count,
    require_flag,
    require_norm_type,
    require_number,
)
from fusedstep.optim.blocks import require_whole_blocks
from fusedstep.optim.distributed import is_flattened, require_groups
from fusedstep.optim.implementation import OURS

NONFINITE = ("propagate", "skip", "error")
STATE_DTYPES = (None, torch.bfloat16, "int8")
MASTERS = (None, "float32", "remainder", "correction")


@dataclass(frozen=True)
class Options:
    """Keyword arguments of every optimizer, in addition to those of torch's class.

    An optimizer's `options` attribute holds the checked options. Each is also an attribute of the
    optimizer itself; `max_norm`, `norm_type` and `nonfinite` may be set between steps. Loading a
    checkpoint does not change the options.

    Args:
        max_norm: Clip the gradients of all groups together to this global norm, in units of the
            gradient, inside `step()`. The coefficient is torch's,
            `min(1, max_norm / (norm + 1e-6))`. `.grad` is not rewritten. For DTensors the norm is
            that of the whole tensors over all meshes, the same on every rank, so all ranks of a
            mesh must call `step()` each time. Plain tensors may be beside them; what is not sharded
            is the same on every rank and counts once. An optimizer that has only some of the
            model's parameters clips by their norm. Where other ranks have the others (a pipeline
            stage, partitions made by DeepSpeed or Megatron), set `norm_groups`. Where other
            optimizers of this process have them, such as one per parameter, stepped in hooks of the
            backward pass, the whole norm is not known in time: do not set `max_norm`, or call
            `clip_grad_norm_` and then all steps. FSDP1 is refused, and ZeroRedundancyOptimizer
            without its group in `norm_groups`. None: do not clip.
        norm_type: Order of the norm: 2, 1 or inf.
        norm_groups: Process groups over which the norm is combined in this order, after those of
            meshes, where each rank has other parameters: pipeline stages, experts, or the group of
            a ZeroRedundancyOptimizer (its class is then `functools.partial(fusedstep.AdamW,
            norm_groups=[group])`). Each takes one gather of 8 bytes a rank; all ranks have the same
            bits. All ranks of a group must call `step()` each time, with or without gradients.
            Parameters replicated along a group would count once per rank. So experts beside
            replicated layers should be DTensors, `DTensor.from_local(expert, mesh, [Shard(0)])`,
            which need no group. Groups that have two processes in common with each other or with a
            parameter's mesh are refused. A deepcopy of the optimizer has the same groups. Pickling
            it raises a TypeError, because process groups cannot be pickled: save `state_dict()`,
            which is without options.
        nonfinite: What a step does if a gradient or the norm is not finite. `"propagate"`: update
            as torch does. `"skip"`: leave parameters, state and step counts unchanged; the device
            decides, without a host wait. `"error"`: raise RuntimeError and change nothing; this
            waits for the device. The norm decides: what is said above about which gradients it
            covers, and what is refused for `max_norm`, holds here, too. A GradScaler looks at the
            gradients of its own process, so what is not finite on another rank skips the step here
            only where a norm is computed; `update()` then lowers the scale on that rank alone.
            With `norm_groups`, use torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler
            with a `process_group` of all these ranks, and call `unscale_` before each step. No
            scaler of torch's takes plain tensors beside DTensors: make them DTensors, too.
        state_dtype: Dtype of the optimizer's state. None: float32, or float64 for float64
            parameters. `torch.bfloat16`: rounded stochastically. `"int8"`: 8-bit codes with a
            float32 scale for every 128 elements in memory, kept in an entry `<name>_scale`; a
            second moment that is less than 6e-8 of the largest of them counts as that. A DTensor
            has codes if it is contiguous and some of its last dimensions, the first not among them,
            multiply to a multiple of 128, as those of a model's matrices do. Its shards must then
            be contiguous and consist of whole blocks. Biases, gains and odd shapes, about a
            thousandth of a model, and transposed matrices keep float32 state, so that a checkpoint
            fits any number of ranks. float64 parameters support neither; FSDP1 does not support
            `"int8"`. A parameter group may override it.
        master: Where a bfloat16 parameter keeps the float32 value that is updated. `"float32"`: in
            a copy, 4 bytes per element. `"remainder"`: as the low 16 bits, 2 bytes per element; the
            parameter is the nearest bfloat16, with ties away from zero; `state_dict()` has them as
            two uint8 tensors. `"correction"`: as the first 8 of those bits, 1 byte per element; the
            value has 24 bits, to which an update is rounded stochastically. Direct writes to the
            parameter, such as loading weights into the model, take effect in all; a remainder or a
            correction stays, which changes the value by at most half of a bfloat16's last bit.
            None: no float32 value is kept; updates round to the nearest bfloat16. Parameters of
            another dtype, float16 included, have no master. A parameter group may override it.
        stochastic_rounding: Round bfloat16 parameters without a master stochastically, so that
            updates smaller than half of a bfloat16's last bit are not lost. A parameter group may
            override it.
        seed: Seed of all stochastic rounding, in [0, 2**64). The same seed gives the same bits on
            every device and for any number of threads. A checkpoint holds the step counts, from
            which the random numbers continue, but not the seed. A DTensor uses the numbers of one
            process if the elements of each shard are consecutive in it, as rows are; other shards,
            such as columns, all use the same numbers.
        ema_decay: Keep an exponential moving average of the parameters with this decay, in
            [0, 1), updated in the same pass. It starts from the parameters before their first step
            and advances at every step, with one more launch for parameters without a gradient
            (frozen ones, experts that no token reached); torch's AveragedModel starts from the
            parameters after it. Buffers, such as those of batch normalization, are not averaged.
            See `ema_parameters` and `swap_ema`. None: no average.
        grad_attribute: Name of the attribute of a parameter from which a step reads its gradient,
            for instance `"main_grad"`, a float32 buffer in which gradients of a bfloat16 parameter
            are accumulated. It is read in its own dtype, unrounded, and must be what `.grad` would
            be: of the parameter's shape, on its device, a DTensor if the parameter is one. A
            parameter that lacks the attribute, or has None there, has no gradient. `zero_grad()`
            resets `.grad` alone: whoever fills the buffers sets them to zero or to None.
            GradScaler, too, reads `.grad` alone: with other gradients set `opt.grad_scale` and
            `opt.found_inf`, 0-d tensors, before `step()`, as GradScaler would, or use
            `nonfinite="skip"`. For float32 gradients in `.grad` itself, which GradScaler and
            `clip_grad_norm_` then read, set `param.grad_dtype = torch.float32` instead.

    Example:
        >>> opt = fusedstep.AdamW(model.parameters(), max_norm=1.0, state_dtype="int8")
        >>> opt.options.max_norm
        1.0
    """

    max_norm: float | None = None
    norm_type: float = 2.0
    norm_groups: Sequence[ProcessGroup] = ()
    nonfinite: str = "propagate"
    state_dtype: torch.dtype | str | None = None
    master: str | None = None
    stochastic_rounding: bool = False
    seed: int = 0
    ema_decay: float | None = None
    grad_attribute: str = "grad"

    @cached_property
    def mode(self) -> Mode:
        """The mode of groups that do not override it."""
        return Mode(self.state_dtype, self.master, self.stochastic_rounding)

    def __deepcopy__(self, memo: dict[int, Any]) -> Options:
        return self  # it never changes, and process groups have no copies

    def __getstate__(self) -> dict[str, Any]:
        if self.norm_groups:
            must = "be empty in an optimizer that is pickled (state_dict() is without it)"
            refuse("Options", "norm_groups", must, f"{len(self.norm_groups)} of them", TypeError)
        return self.__dict__

    @property
    def seed_bits(self) -> int:
        """The signed integer with the bits of `seed`, which is what the ops take."""
        return self.seed - 2**64 if self.seed >= 2**63 else self.seed

    def checked(self, function: str, native: bool) -> Options:
        """These options, converted to their types; refuses values out of range.

        `native`: whether the step is fusedstep's; torch's own step supports no options.
        """
        if self.nonfinite not in NONFINITE:
            must = f"be one of {', '.join(NONFINITE)}"
            refuse(function, "nonfinite", must, repr(self.nonfinite))
        source = self.grad_attribute
        if not (isinstance(source, str) and source.isidentifier()):
            refuse(function, "grad_attribute", "be the name of an attribute", repr(source))
        mode = require_mode(function, self.mode)
        max_norm, decay = self.max_norm, self.ema_decay
        checked = replace(
            self,
            max_norm=None if max_norm is None else require_number(function, "max_norm", max_norm),
            norm_type=require_norm_type(function, self.norm_type),
            norm_groups=require_groups(function, "norm_groups", self.norm_groups),
            seed=require_count(function, "seed", self.seed, below=2**64),
            ema_decay=None if decay is None else require_beta(function, "ema_decay", decay),
            **mode._asdict(),
        )
        for field in fields(Options) if not native else ():
            value = getattr(checked, field.name)
            if value != field.default and field.name != "norm_type":  # means nothing by itself
                torchs = "fused=False or foreach=True selects torch's own step"
                must = f"be {field.default!r} where {torchs}"
                refuse(function, field.name, must, repr(value))
        return checked


class OptionArguments(TypedDict, total=False):
    """The fields of `Options` as keyword arguments, for type checkers."""

    max_norm: float | None
    norm_type: float
    norm_groups: Sequence[ProcessGroup]
    nonfinite: str
    state_dtype: torch.dtype | str | None
    master: str | None
    stochastic_rounding: bool
    seed: int
    ema_decay: float | None
    grad_attribute: str


class Mode(NamedTuple):
    """How parameters and state are kept: the options that a parameter group may override."""

    state_dtype: torch.dtype | str | None = None
    master: str | None = None
    stochastic_rounding: bool = False

    @property
    def rounds_params(self) -> bool:
        """Whether updates of parameters are rounded stochastically."""
        return self.stochastic_rounding or self.master == "correction"

    def of(self, group: Mapping[str, Any]) -> Mode:
        """This mode with what `group` overrides."""
        if group.keys().isdisjoint(MODE_KEYS):
            return self
        return Mode(*(group.get(key, value) for key, value in zip(MODE_KEYS, self, strict=True)))


MODE_KEYS = Mode._fields


def require_mode(function: str, mode: Mode, where: str = "{}") -> Mode:
    """The mode with None for torch.float32; `where` makes a message's argument from a key."""
    state_dtype, master, stochastic = mode
    if state_dtype == torch.float32:
        state_dtype = None
    if state_dtype not in STATE_DTYPES:
        must = "be None, torch.bfloat16 or 'int8'"
        refuse(function, where.format("state_dtype"), must, repr(state_dtype))
    if master not in MASTERS:
        must = "be None, 'float32', 'remainder' or 'correction'"
        refuse(function, where.format("master"), must, repr(master))
    stochastic = require_flag(function, where.format("stochastic_rounding"), stochastic)
    if stochastic and master is not None:
        must = f"be False when master={master!r} is set"
        refuse(function, where.format("stochastic_rounding"), must, stochastic)
    return Mode(state_dtype, master, stochastic)


def require_mode_of(function: str, label: str, param: Tensor, mode: Mode) -> None:
    """Refuses a parameter that cannot be kept in this mode."""
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
    if mode.state_dtype == "int8":
        if is_flattened(param):  # whose rows are unknown
            must = "be a plain tensor or a DTensor (use fully_shard) where state_dtype='int8'"
            refuse(function, label, must, "an FSDP1 slice", TypeError)
        require_whole_blocks(function, label, param)


def with_choices_of(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The group `saved` of a checkpoint with the mode and the implementation of the group `own`."""
    chosen = (*MODE_KEYS, *OURS)
    kept = {key: value for key, value in saved.items() if key not in chosen}
    return kept | {key: own[key] for key in chosen if key in own}
