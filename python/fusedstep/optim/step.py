"""What a step asks of the kernels: the norm, then the rule over each table, with no host wait."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse
from fusedstep.fakes import register_writers
from fusedstep.optim.distributed import Place, norm_over_ranks
from fusedstep.optim.hyperparameters import read_on_device
from fusedstep.optim.tables import Table

if TYPE_CHECKING:
    from fusedstep.optim.optimizer import FusedOptimizer

_STEP = torch.ops.fusedstep.table_step_.default
_NORM = torch.ops.fusedstep.table_norm_.default

Values = dict[str, float]  # a value for each field of a rule, by name

register_writers("step_", "table_step_", "table_norm_")


@cache
def rule_fields(rule: str) -> tuple[str, ...]:
    """The names of the values that a parameter group of a rule has, in the ops' order."""
    return tuple(_C.rule_fields(rule))


def in_order(rule: str, groups: Sequence[Mapping[str, float]]) -> list[float]:
    """The values of parameter groups, given by name, as the ops take them: group after group."""
    fields = rule_fields(rule)
    try:
        ordered = [values[name] for values in groups for name in fields]
    except KeyError as error:
        raise TypeError(f"a group of rule {rule} must have the field {error}") from None
    if sum(map(len, groups)) != len(ordered):
        unknown = sorted(set().union(*groups) - set(fields))
        raise TypeError(f"a group of rule {rule} must have its fields alone, got {unknown} as well")
    return ordered


def update(optimizer: FusedOptimizer, active: dict[Place, Table], values: list[Values]) -> None:
    """Computes the norm, where one is wanted, and runs the rule over all tables with gradients.

    Args:
        optimizer: Whose parameters are stepped, and whose norm is set.
        active: The tables that have gradients, ready for the ops.
        values: For each parameter group a value for each field of the rule.
    """
    _require_capturable(optimizer, active)
    options, tables = optimizer.options, optimizer._internals.tables
    name = type(optimizer).__name__
    wants_norm = options.max_norm is not None or options.nonfinite != "propagate"
    if wants_norm and tables.flattened:
        must, got = "be a DTensor (fully_shard) where a norm is asked for", "an FSDP1 slice"
        refuse(name, tables.flattened, must, got, TypeError)
    several = len(active) > 1 or tables.shared
    total = _norm_of_places(optimizer, active) if wants_norm and several else None
    for place, table in active.items():
        norm, norm_type = None, 0.0  # 0: the op computes no norm
        if total is not None:
            norm = total.to(place.device)
        elif wants_norm:
            norm = torch.empty((), dtype=torch.float64, device=place.device)
            norm_type = options.norm_type
        run_rule(
            optimizer, table, optimizer.param_groups, values, norm, norm_type,
            _scalar(optimizer, "grad_scale", place.device), options.max_norm,
        )  # fmt: skip
        total = norm if total is None else total
    optimizer._internals.norm = total
    if options.nonfinite == "error" and total is not None:
        _raise_nonfinite(optimizer, float(total.to(torch.float32)))


def run_rule(
    optimizer: FusedOptimizer,
    table: Table,
    groups: Sequence[Mapping[str, Any]],
    values: Sequence[Values],
    norm: Tensor | None,
    norm_type: float = 0.0,
    grad_scale: Tensor | None = None,
    max_norm: float | None = None,
) -> None:
    """The op over one table, whose group g is groups[g] with values[g]."""
    device, options = table.place.device, optimizer.options
    lr_groups = [g for g, group in enumerate(groups) if read_on_device(group["lr"])]
    _STEP(
        table.handle.address, optimizer._rule, table.params[0], in_order(optimizer._rule, values),
        options.seed_bits, [_float32_on(device, groups[g]["lr"]) for g in lr_groups], lr_groups,
        norm, norm_type, grad_scale, _scalar(optimizer, "found_inf", device),
        -1.0 if max_norm is None else max_norm, options.nonfinite != "propagate",
    )  # fmt: skip
    table.commit()


def _norm_of_places(optimizer: FusedOptimizer, active: dict[Place, Table]) -> Tensor:
    """The norm over several devices and ranks: 0-d float64 on the first device.

    Ranks may differ in which DTensors have gradients, but not in how often they communicate.
    """
    norm_type = optimizer.options.norm_type
    norms = {
        place: torch.zeros((), dtype=torch.float64, device=place.device)
        for place in (*optimizer._internals.tables.shared, *active)
    }
    for place, table in active.items():
        scale = _scalar(optimizer, "grad_scale", place.device)
        _NORM(table.handle.address, norms[place], norm_type, scale)
    return norm_over_ranks(norms, norm_type)


def _scalar(optimizer: FusedOptimizer, name: str, device: torch.device) -> Tensor | None:
    """GradScaler's `grad_scale` or `found_inf`, where it has set one, on `device`."""
    value = getattr(optimizer, name, None)
    return None if value is None else _float32_on(device, value)


def _float32_on(device: torch.device, value: Tensor) -> Tensor:
    """`value` as float32 on `device`, without waiting for a GPU unless the CPU is to read it."""
    return value.to(device, torch.float32, non_blocking=device.type == "cuda")


def _raise_nonfinite(optimizer: FusedOptimizer, norm: float) -> None:
    found_inf = getattr(optimizer, "found_inf", None)
    skipped_by_scaler = found_inf is not None and bool(found_inf)
    if not math.isfinite(norm) and not skipped_by_scaler:
        raise RuntimeError(
            f"{type(optimizer).__name__}: the gradients' norm must be finite where "
            f"nonfinite='error', got {norm}; nothing was changed"
        )


def _require_capturable(optimizer: FusedOptimizer, active: dict[Place, Table]) -> None:
    on_gpu = any(place.device.type == "cuda" for place in active)
    if not on_gpu or not torch.cuda.is_current_stream_capturing():
        return
    name, rest = type(optimizer).__name__, "while a CUDA graph is captured, got"
    if not all(group.get("capturable", True) for group in optimizer.param_groups):
        raise RuntimeError(f"{name}: capturable must be True in every group {rest} False")
    if optimizer.options.nonfinite == "error":
        raise RuntimeError(f"{name}: nonfinite must be 'propagate' or 'skip' {rest} 'error'")
