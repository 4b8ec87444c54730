"""Adam: Kingma and Ba 2015, Algorithm 1. The formula itself is in kernels/optim/rules/adam.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.optim.base import FusedOptimizer
from fusedstep.optim.hyperparameters import Group, betas, numbers
from fusedstep.optim.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AdamRule(FusedOptimizer):
    """What Adam and AdamW say of their parameter groups."""

    _rule = "adam"
    _never_negative = frozenset({"exp_avg_sq", "max_exp_avg_sq"})

    def _state_names(self, group: Group) -> tuple[str, ...]:
        names = ("step", "exp_avg", "exp_avg_sq")
        return (*names, "max_exp_avg_sq") if group["amsgrad"] else names

    def _fields(self, group: Group, index: int | None) -> list[float]:
        name = type(self).__name__
        decoupled, amsgrad = group["decoupled_weight_decay"], group["amsgrad"]
        return [
            *betas(name, group, index), *numbers(name, group, index, ("eps", "weight_decay")),
            float(decoupled), float(amsgrad),
        ]  # fmt: skip


class Adam(AdamRule, torch.optim.Adam):
    """torch.optim.Adam with the global-norm clip inside `step()`, in two launches a step.

    Kingma and Ba 2015, Algorithm 1, https://arxiv.org/abs/1412.6980; `amsgrad`: Reddi, Kale and
    Kumar 2018, Algorithm 2. `weight_decay` is added to the gradient; `decoupled_weight_decay=True`
    makes it AdamW's.

    Arguments, defaults, state and checkpoints are those of torch.optim.Adam, and those of
    fusedstep.optim.Options more.

    Parameters are float32, float64, bfloat16 or float16; gradients may be of another of these.
    State is float32, or float64 for float64 parameters. `fused=False` or `foreach=True` selects
    torch's own step. GradScaler's loss scale is divided out as the gradient is read.

    Raises:
        ValueError, TypeError: `Adam: <argument> must <property>, got <value>`; nothing changed.
        RuntimeError: `differentiable=True`, as torch's fused step.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        arguments = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        fused = self._prepare(
            arguments, foreach=foreach, fused=fused, differentiable=differentiable, options=options
        )
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip
