"""Calls the kernels of one step: the norm, then the rule over each table, without host waits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse
from fusedstep.fakes import has_values, register_writers
from fusedstep.optim.distributed import Place, require_apart
from fusedstep.optim.hyperparameters import (
    Group,
    Values,
    entries_of,
    in_order,
    parameter_labels,
    read_on_device,
    rule_fields,
)
from fusedstep.optim.norm import norm_of_nothing, norm_over_ranks
from fusedstep.optim.options import Options
from fusedstep.optim.state import StateSpec
from fusedstep.optim.tables import Table, Tables

_STEP = torch.ops.fusedstep.table_step_.default
_NORM = torch.ops.fusedstep.table_norm_.default

REST = "rest"  # the rule of parameters without a gradient

register_writers("step_", "table_step_", "table_norm_")


class Plan(NamedTuple):
    """What the op needs to know of a rule's groups, made once."""

    held: _C.StepPlan
    address: int  # of the same
    lr_groups: list[int]  # groups whose rate is a tensor that the kernels read


class Step:
    """What the kernels are given in addition to tables, until a group or an option changes."""

    def __init__(
        self,
        function: str,
        rule: str,
        options: Options,
        groups: list[Group],
        values: list[Values],
        specs: list[StateSpec],
    ) -> None:
        self.function = function  # the optimizer's name in messages
        self.rule = rule  # the stem of its file in kernels/optim/rules
        self.options = options
        self.groups = groups
        self.values = values  # of each group: a value for each field of the rule
        self.specs = specs  # of each group: what state its parameters have
        self.grad_scale: Tensor | None = None  # GradScaler's, as is the next
        self.found_inf: Tensor | None = None
        count = 0
        for group in groups if options.norm_groups else ():
            labels, params = parameter_labels(group, first=count), group["params"]
            require_apart(function, "norm_groups", options.norm_groups, labels, params)
            count += len(params)
        self._read = entries_of(groups)
        self._plan = self.plan_of(rule, groups, values, options.max_norm)

    def is_current(self, groups: list[Group]) -> bool:
        """Whether the groups still are what this was made from."""
        if self._read is None or type(groups) is not list:
            return False
        return _C.same_entries(groups, self._read)

    def update(self, tables: Tables, active: dict[Place, Table]) -> Tensor | None:
        """Computes the norm if it is needed, and runs the rule over all tables with gradients.

        Args:
            tables: All tables of the optimizer.
            active: Those that have gradients, ready for the ops.

        Returns:
            The norm before clipping, 0-d float64 on the first table's device or, without a table,
            where `norm_groups` communicate; or None. The next step overwrites it.
        """
        if tables.on_gpu:
            self._require_capturable()
        options = self.options
        wants_norm = options.max_norm is not None or options.nonfinite != "propagate"
        if wants_norm and tables.flattened:
            must = "be a DTensor (use fully_shard) when max_norm or nonfinite needs a norm"
            refuse(self.function, tables.flattened, must, "an FSDP1 slice", TypeError)
        several = len(active) > 1 or tables.shared or options.norm_groups
        total = self._norm_of_places(tables, active) if wants_norm and several else None
        for place, table in active.items():
            norm, norm_type = None, 0.0  # 0: the op computes no norm
            if total is not None:
                norm = total.to(place.device)
            elif wants_norm:
                norm, norm_type = table.norm, options.norm_type
            self.run(table, self._plan, self.groups, norm, norm_type, self.grad_scale)
            total = norm if total is None else total
        return total

    def plan_of(
        self,
        rule: str,
        groups: Sequence[Group],
        values: Sequence[Values],
        max_norm: float | None = None,
    ) -> Plan:
        """What the op needs for a rule, of whose groups values[g] are the fields' values."""
        lr_groups = [g for g, group in enumerate(groups) if read_on_device(group["lr"])]
        plan = _C.StepPlan(
            rule, in_order(rule, values), self.options.seed_bits, lr_groups,
            -1.0 if max_norm is None else max_norm, self.options.nonfinite != "propagate",
        )  # fmt: skip
        return Plan(plan, plan.address, lr_groups)

    def run(
        self,
        table: Table,
        plan: Plan,
        groups: Sequence[Group],
        norm: Tensor | None,
        norm_type: float = 0.0,
        grad_scale: Tensor | None = None,
    ) -> None:
        """Calls the op on one table by a plan for its groups, of which groups[g] is the g-th."""
        device = table.place.device
        _STEP(
            table.address, plan.address, table.params[0],
            [_float32_on(device, groups[g]["lr"]) for g in plan.lr_groups], norm, norm_type,
            _float32_on(device, grad_scale), _float32_on(device, self.found_inf),
        )  # fmt: skip
        table.commit()

    def advance_averages(self, tables: Tables, norm: Tensor | None) -> None:
        """Advances the averages of parameters without a gradient, unless the step is skipped.

        `norm` is what `update` returned; None if nothing has a gradient.
        """
        decay = self.options.ema_decay
        if decay is None:
            return
        plan = self.plan_of_averages([decay])
        for table in tables.values():
            for resting, param in table.resting():
                self.average(resting.address, plan, param, norm)

    def plan_of_averages(self, decays: Sequence[float]) -> Plan:
        """The plan by which averages advance: one decay for each group of a table."""
        fields = dict.fromkeys(rule_fields(REST), 0.0)
        return self.plan_of(REST, [], [fields | {"ema_decay": decay} for decay in decays])

    def average(self, table: int, plan: Plan, first: Tensor, norm: Tensor | None) -> None:
        """Advances the averages in a table, whose first tensor is given, unless it is skipped."""
        _STEP(
            table, plan.address, first, [], None if norm is None else norm.to(first.device), 0.0,
            None, _float32_on(first.device, self.found_inf),
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

        Ranks may differ in which parameters have gradients, but not in how often they communicate.
        """
        norm_type = self.options.norm_type
        norms = {
            place: norm_of_nothing(norm_type, place.device) for place in (*tables.shared, *active)
        }
        for place, table in active.items():
            grad_scale = _float32_on(place.device, self.grad_scale)
            _NORM(table.handle.address, norms[place], norm_type, grad_scale)
        norm = norm_over_ranks(norms, norm_type, self.options.norm_groups)
        if self.found_inf is not None:  # a GradScaler has seen this rank's gradients only
            nonfinite = ~norm.to(torch.float32).isfinite()
            self.found_inf = self.found_inf.to(norm.device, torch.float32) + nonfinite
        return norm

    def _require_capturable(self) -> None:
        if not torch.cuda.is_current_stream_capturing():
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
