"""Muon: Jordan 2024. The formula itself is in kernels/optim/rules/muon.h and newton_schulz.py."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_count
from fusedstep.distributed import Place, is_dtensor
from fusedstep.optim.adam import AdamRule
from fusedstep.optim.base import FusedOptimizer, float32_on
from fusedstep.optim.hyperparameters import (
    Group,
    label,
    numbers,
    parameter_labels,
    read_on_device,
)
from fusedstep.optim.muon_plan import DescentPlan, MuonPlan, require_matrix
from fusedstep.optim.newton_schulz import orthogonalize_
from fusedstep.optim.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

# The step's ratio to the rate, for a matrix of m rows and n columns: Jordan's, Liu et al. 2025,
# equation 4 (https://arxiv.org/abs/2502.16982), and Bernstein's.
RATIOS = {
    "original": lambda m, n: math.sqrt(max(1, m / n)),
    "match_rms_adamw": lambda m, n: 0.2 * math.sqrt(max(m, n)),
    "spectral_unclamped": lambda m, n: math.sqrt(m / n),
}
# torch.optim.AdamW's arguments and defaults, for groups that say use_muon=False.
ADAMW = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False,
    "decoupled_weight_decay": True,
}  # fmt: skip


class Muon(FusedOptimizer, torch.optim.Muon):
    """torch.optim.Muon with the global-norm clip inside `step()`, and AdamW for what is no matrix.

    Jordan 2024, https://kellerjordan.github.io/posts/muon/, for the hidden layers' matrices:
    momentum, whose direction is made orthogonal by Newton-Schulz iterations in bfloat16, batched
    over matrices of one shape. Groups with `use_muon=False` are stepped by AdamW, bit for bit
    that of fusedstep.AdamW: embeddings, heads, gains and biases.

        fusedstep.Muon([
            {"params": hidden_matrices},
            {"params": everything_else, "use_muon": False, "lr": 3e-4, "betas": (0.9, 0.95)},
        ], lr=0.02, weight_decay=0.01, max_norm=1.0)

    The norm, the clip, AdamW and Muon's momentum run as in every optimizer here, two launches per
    combination of dtypes (directions are bfloat16); then come the matrix products of each shape and
    one more launch, which moves the matrices.

    Args:
        params: tensors, named tensors or groups. Those of Muon are [m, n]. The arguments below are
            Muon's; a group with `use_muon=False` takes `lr`, `betas`, `eps`, `weight_decay`,
            `amsgrad` and, where it does not say, torch.optim.AdamW's defaults for them.
        lr: the rate, 0 or more; a tensor is read at every step.
        weight_decay: of the parameter itself, by lr * weight_decay a step.
        momentum: the share of the average that is kept at a step.
        nesterov: the direction is the average as it would be after this gradient once more.
        ns_coefficients: a, b, c of the iteration X <- a X + (b G + c G^2) X, G = X X^T.
        eps: the smallest Frobenius norm that a direction is divided by.
        ns_steps: iterations, 0 to 99.
        adjust_lr_fn: the step's ratio to `lr`: "original" (None too) sqrt(max(1, m / n)),
            "match_rms_adamw" 0.2 sqrt(max(m, n)), "spectral_unclamped" sqrt(m / n).
        maximize: go up, in every group that does not say otherwise.
        options: those of fusedstep.optim.Options; `stochastic_rounding` is for groups with
            `use_muon=False` alone.

    Parameters are float32, float64, bfloat16 or float16; gradients may be of another of these.
    State is float32, or float64 for float64 parameters, and named as in torch, with whose
    checkpoints it can be exchanged. Beside it a direction is kept for each matrix, in bfloat16.

    Raises:
        ValueError, TypeError: `Muon: <argument> must <property>, got <value>`; nothing changed.
    """

    _rule = "muon"
    _never_negative = AdamRule._never_negative
    _plan: ClassVar = MuonPlan

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn, "maximize": maximize, "use_muon": True,
        }  # fmt: skip
        self._prepare(defaults, foreach=None, fused=None, differentiable=False, options=options)
        # Not by way of torch.optim.Muon's constructor, which refuses what AdamW is there for.
        super(torch.optim.Muon, self).__init__(params, defaults)

    # --- groups -----------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim.Optimizer's; a group with `use_muon=False` is AdamW's."""
        if isinstance(param_group, dict):
            _complete(param_group)
        super().add_param_group(param_group)
        try:
            self._require_matrices(len(self.param_groups) - 1)
        except Exception:
            self.param_groups.pop()
            raise

    def _require_matrices(self, index: int) -> None:
        name, group = type(self).__name__, self.param_groups[index]
        if group["use_muon"] and self._chosen["mode"].of(group).stochastic_rounding:
            # Directions and parameters are rounded in two launches; one count of steps is not two.
            refuse(name, label(index, "stochastic_rounding"), "be False where use_muon", True)
        labels = parameter_labels(group, f"param_groups[{index}]['params']")
        for where, param in zip(labels, group["params"], strict=True):
            if is_dtensor(param):  # its products would need all of it
                refuse(name, where, "be a plain tensor", type(param).__name__, TypeError)
            if group["use_muon"]:
                require_matrix(name, where, param)

    def _completed(self, saved: Group) -> Group:
        saved = dict(saved)
        _complete(saved)
        return super()._completed(saved)

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:  # a checkpoint may come from another implementation
            _complete(group)
        super().__setstate__(state)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["use_muon"] else AdamRule._state_names(self, group)

    def _fields(self, group: Group, index: int | None) -> list[float]:
        name, use_muon = type(self).__name__, group["use_muon"]
        if not isinstance(use_muon, bool):
            got = type(use_muon).__name__
            refuse(name, label(index, "use_muon"), "be True or False", got, TypeError)
        if not use_muon:
            return [*AdamRule._fields(self, group, index), 0.0, 0.0, 0.0, 0.0, 0.0]
        decay, momentum, _ = numbers(name, group, index, ("weight_decay", "momentum", "eps"))
        _require_iteration(name, group, index)
        of_adamw = [0.0, 0.0, 0.0, decay, 1.0, 0.0]
        return [*of_adamw, momentum, float(group["nesterov"]), 1.0, 0.0, 0.0]

    # --- the step ---------------------------------------------------------------------------

    def _write(self, work: dict[Place, MuonPlan], values: list[float]) -> None:
        super()._write(work, values)  # AdamW's part, and Muon's directions
        for place, plan in work.items():
            iterations: dict[tuple[Any, ...], list[Tensor]] = {}
            for group, directions in zip(
                self.param_groups, plan.directions(self.param_groups), strict=True
            ):
                if directions:
                    key = (tuple(group["ns_coefficients"]), group["ns_steps"], float(group["eps"]))
                    iterations.setdefault(key, []).extend(directions)
            for iteration, directions in iterations.items():
                orthogonalize_(directions, *iteration)
            if iterations:
                self._descend(place.device, plan.descent, values)

    def _descend(self, device: torch.device, plan: DescentPlan, values: list[float]) -> None:
        """Moves the matrices, unless the step is skipped: the same decision, made once more."""
        width = len(values) // len(self.param_groups)
        rows, rates = [], []
        for g, (m, n) in plan.kinds:
            group = self.param_groups[g]
            ratio = RATIOS[group["adjust_lr_fn"] or "original"](m, n) if m and n else 0.0
            rows += [*values[g * width : (g + 1) * width - 2], 1.0, ratio]
            if read_on_device(group["lr"]):
                rates.append(float32_on(device, group["lr"]))
        norm = None if self._norm is None else self._norm.to(device)
        self._table_op(
            plan.table.address, self._rule, plan.params[0], rows, rates, norm, 0.0, None,
            self._scalar("found_inf", device), -1.0, self.nonfinite != "propagate",
        )  # fmt: skip
        plan.finish()


def _complete(group: dict[str, Any]) -> None:
    """Gives a group of AdamW's the arguments it leaves out, before Muon's fill them in."""
    if not group.get("use_muon", True):
        for name, value in ADAMW.items():
            group.setdefault(name, value)


def _require_iteration(name: str, group: Group, index: int | None) -> None:
    """What the iteration and the ratio are asked to be, as far as they are not plain numbers."""
    coefficients, steps = group["ns_coefficients"], group["ns_steps"]
    if not (
        isinstance(coefficients, (tuple, list))
        and len(coefficients) == 3
        and all(isinstance(c, Real) and math.isfinite(c) for c in coefficients)
    ):
        refuse(name, label(index, "ns_coefficients"), "be three numbers", repr(coefficients))
    require_count(name, label(index, "ns_steps"), steps, below=100)
    ratio = group["adjust_lr_fn"]
    if ratio is not None and not (isinstance(ratio, str) and ratio in RATIOS):
        must = f"be None or one of {', '.join(RATIOS)}"
        refuse(name, label(index, "adjust_lr_fn"), must, repr(ratio))
