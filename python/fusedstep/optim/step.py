"""Calls the kernels of one step: the norm, then the rule over each table, without host waits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.fakes import has_values, register_writers
from fusedstep.optim.distributed import Place, norm_over_ranks
from fusedstep.optim.hyperparameters import Group, Values, in_order, read_on_device, rule_fields
from fusedstep.optim.options import Options
from fusedstep.optim.tables import Table, Tables

_STEP = torch.ops.fusedstep.table_step_.default
_NORM = torch.ops.fusedstep.table_norm_.default

REST = "rest"  # the rule of parameters without a gradient

register_writers("step_", "table_step_", "table_norm_")


class Step(NamedTuple):
    """One step of an optimizer: what the kernels are given in addition to tables."""

    function: str  # the optimizer's name in messages
    rule: str  # the stem of its file in kernels/optim/rules
    options: Options
    groups: list[Group]
    values: list[Values]  # of each group: a value for each field of the rule
    grad_scale: Tensor | None  # GradScaler's, as is the next
    found_inf: Tensor | None

    def update(self, tables: Tables, active: dict[Place, Table]) -> Tensor | None:
        """Computes the norm if it is needed, and runs the rule over all tables with gradients.

        Args:
            tables: All tables of the optimizer.
            active: Those that have gradients, ready for the ops.

        Returns:
            The norm before clipping, 0-d float64 on the first table's device, or None.
        """
        self._require_capturable(active)
        options = self.options
        wants_norm = options.max_norm is not None or options.nonfinite != "propagate"
        if wants_norm and tables.flattened:
            must = "be a DTensor (use fully_shard) when max_norm or nonfinite needs a norm"
            refuse(self.function, tables.flattened, must, "an FSDP1 slice", TypeError)
        several = len(active) > 1 or tables.shared
        total = self._norm_of_places(tables, active) if wants_norm and several else None
        for place, table in active.items():
            norm, norm_type = None, 0.0  # 0: the op computes no norm
            if total is not None:
                norm = total.to(place.device)
            elif wants_norm:
                norm = torch.empty((), dtype=torch.float64, device=place.device)
                norm_type = options.norm_type
            grad_scale = _float32_on(place.device, self.grad_scale)
            self.run_rule(
                table, self.groups, self.values, norm, norm_type, grad_scale, options.max_norm
            )
            total = norm if total is None else total
        return total

    def run_rule(
        self,
        table: Table,
        groups: Sequence[Mapping[str, Any]],
        values: Sequence[Values],
        norm: Tensor | None,
        norm_type: float = 0.0,
        grad_scale: Tensor | None = None,
        max_norm: float | None = None,
    ) -> None:
        """Runs the op over one table, whose group g is groups[g] with values[g]."""
        device, options = table.place.device, self.options
        lr_groups = [g for g, group in enumerate(groups) if read_on_device(group["lr"])]
        _STEP(
            table.handle.address, self.rule, table.params[0], in_order(self.rule, values),
            options.seed_bits, [_float32_on(device, groups[g]["lr"]) for g in lr_groups], lr_groups,
            norm, norm_type, grad_scale, _float32_on(device, self.found_inf),
            -1.0 if max_norm is None else max_norm, options.nonfinite != "propagate",
        )  # fmt: skip
        table.commit()

    def advance_averages(self, tables: Tables, norm: Tensor | None) -> None:
        """Advances the averages of parameters without a gradient, unless the step is skipped.

        `norm` is what `update` returned; None if nothing has a gradient.
        """
        options = self.options
        if options.ema_decay is None:
            return
        of_group = dict.fromkeys(rule_fields(REST), 0.0) | {"ema_decay": options.ema_decay}
        for table in tables.values():
            device = table.place.device
            for resting, param in table.resting():
                _STEP(
                    resting.address, REST, param, in_order(REST, [of_group]), 0, [], [],
                    None if norm is None else norm.to(device), 0.0, None,
                    _float32_on(device, self.found_inf), -1.0, options.nonfinite != "propagate",
                )  # fmt: skip

    def require_finite(self, norm: Tensor | None) -> None:
        """Raises RuntimeError if the norm is not finite and `nonfinite="error"`."""
        if self.options.nonfinite != "error" or norm is None:
            return
        if not has_values(norm):
            must = "be 'propagate' or 'skip' for tensors without values"
            refuse(self.function, "nonfinite", must, "'error'")
        skipped_by_scaler = self.found_inf is not None and bool(self.found_inf)
        number = float(norm.to(torch.float32))
        if not math.isfinite(number) and not skipped_by_scaler:
            raise RuntimeError(
                f"{self.function}: the gradients' norm must be finite where "
                f"nonfinite='error', got {number}; nothing was changed"
            )

    def _norm_of_places(self, tables: Tables, active: dict[Place, Table]) -> Tensor:
        """The norm over several devices and ranks: 0-d float64 on the first device.

        Ranks may differ in which DTensors have gradients, but not in how often they communicate.
        """
        norm_type = self.options.norm_type
        norms = {
            place: torch.zeros((), dtype=torch.float64, device=place.device)
            for place in (*tables.shared, *active)
        }
        for place, table in active.items():
            grad_scale = _float32_on(place.device, self.grad_scale)
            _NORM(table.handle.address, norms[place], norm_type, grad_scale)
        return norm_over_ranks(norms, norm_type)

    def _require_capturable(self, active: dict[Place, Table]) -> None:
        on_gpu = any(place.device.type == "cuda" for place in active)
        if not on_gpu or not torch.cuda.is_current_stream_capturing():
            return
        rest = "while a CUDA graph is captured, got"
        if not all(group.get("capturable", True) for group in self.groups):
            must = f"capturable must be True in every group {rest} False"
            raise RuntimeError(f"{self.function}: {must}")
        if self.options.nonfinite == "error":
            must = f"nonfinite must be 'propagate' or 'skip' {rest} 'error'"
            raise RuntimeError(f"{self.function}: {must}")


def _float32_on(device: torch.device, value: Tensor | None) -> Tensor | None:
    """`value` as float32 on `device`, without waiting for a GPU unless the CPU reads it."""
    if value is None:
        return None
    return value.to(device, torch.float32, non_blocking=device.type == "cuda")
