"""AdamW: Loshchilov and Hutter 2019, Algorithm 2. The formula itself is in kernels/rules/adam.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_beta, require_number
from fusedstep.optim.base import FusedOptimizer


class AdamW(FusedOptimizer, torch.optim.AdamW):
    """torch.optim.AdamW with the global-norm clip inside `step()`, in two launches a step.

    Decoupled weight decay: Loshchilov and Hutter 2019, Algorithm 2,
    https://arxiv.org/abs/1711.05101; `amsgrad`: Reddi, Kale and Kumar 2018, Algorithm 2.

    Arguments, defaults, state and checkpoints are those of torch.optim.AdamW, and these more:

    Args:
        max_norm: clip all groups' gradients together to this norm (in units of the gradient) inside
            `step()`, by torch's coefficient min(1, max_norm / (norm + 1e-6)). `.grad` itself is not
            rewritten. None: no clip.
        norm_type: 2, 1 or inf.
        nonfinite: "propagate" as torch; "skip": where a gradient or the norm is not finite,
            parameters, state and step counts stay as they were, decided on the device; "error":
            RuntimeError in that case, nothing changed (this waits for the device).

    Parameters are float32, float64, bfloat16 or float16; gradients may be of another of these.
    State is float32, or float64 for float64 parameters. `fused=False` or `foreach=True` selects
    torch's own step. GradScaler's loss scale is divided out as the gradient is read.

    Raises:
        ValueError, TypeError: `AdamW: <argument> must <property>, got <value>`; nothing changed.
        RuntimeError: `differentiable=True`, as torch's fused step.
    """

    _table_op = torch.ops.fusedstep.table_adam_.default

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        nonfinite: str = "propagate",
    ) -> None:
        native = fused is not False and not (foreach and not fused)
        self._set_options(max_norm, norm_type, nonfinite, native)
        if native:
            numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
            adam_fields("AdamW", numbers | {"maximize": maximize, "amsgrad": amsgrad}, None)
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach,
            capturable=capturable, differentiable=differentiable, fused=True if native else fused,
        )  # fmt: skip

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        names = ("exp_avg", "exp_avg_sq")
        return (*names, "max_exp_avg_sq") if group["amsgrad"] else names

    def _fields(self, group: dict[str, Any], index: int) -> list[float]:
        return adam_fields(type(self).__name__, group, index)


def adam_fields(function: str, group: dict[str, Any], index: int | None) -> list[float]:
    """The numbers of parameter group `index`, checked, in the order of csrc/adam_groups.h.

    `index` None: the constructor's arguments. A learning rate on a GPU is left where it is: the
    kernels read it there.
    """
    lr, betas, eps, weight_decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        refuse(function, _label(index, "betas"), "be a pair of numbers", repr(betas))
    reads_lr = isinstance(lr, Tensor) and lr.is_cuda
    rate = 0.0 if reads_lr else lr
    # The usual case first: this runs for every group at every step.
    floats = type(rate) is type(beta1) is type(beta2) is type(eps) is type(weight_decay) is float
    in_range = floats and rate >= 0 and eps >= 0 and weight_decay >= 0
    if not (in_range and 0 <= beta1 < 1 and 0 <= beta2 < 1):
        rate, beta1, beta2, eps, weight_decay = _checked(function, group | {"lr": rate}, index)
    decoupled = 1.0
    flags = (decoupled, float(group["maximize"]), float(group["amsgrad"]), float(reads_lr))
    return [rate, beta1, beta2, eps, weight_decay, *flags]


def _checked(function: str, group: dict[str, Any], index: int | None) -> tuple[float, ...]:
    """The same numbers one by one, with a message for the first that is wrong."""

    def number(key: str) -> float:
        return require_number(function, _label(index, key), group[key])

    betas = _label(index, "betas")
    return (
        number("lr"),
        require_beta(function, f"{betas}[0]", group["betas"][0]),
        require_beta(function, f"{betas}[1]", group["betas"][1]),
        number("eps"),
        number("weight_decay"),
    )


def _label(index: int | None, key: str) -> str:
    """How a message calls an entry of a group, or the constructor's argument itself."""
    return key if index is None else f"param_groups[{index}]['{key}']"
