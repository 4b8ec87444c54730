"""Adam and AdamW. The formula is in kernels/optim/rules/adam.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.optim.hyperparameters import Group, Values, betas, flag, numbers
from fusedstep.optim.optimizer import FusedOptimizer
from fusedstep.optim.options import OptionArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

NEVER_NEGATIVE: frozenset[str] = frozenset({"exp_avg_sq", "max_exp_avg_sq"})


def state_names(group: Group) -> tuple[str, ...]:
    """The entries of a parameter's state."""
    names = ("step", "exp_avg", "exp_avg_sq")
    return (*names, "max_exp_avg_sq") if group["amsgrad"] else names


def rule_values(function: str, group: Group, index: int | None) -> Values:
    """The values of the rule's fields, checked."""
    values = numbers(function, group, index, ("eps", "weight_decay"))
    values.update(betas(function, group, index))
    decoupled, amsgrad = group["decoupled_weight_decay"], group["amsgrad"]
    values["decoupled"] = (
        1.0 if decoupled is True else flag(function, group, index, "decoupled_weight_decay")
    )
    values["amsgrad"] = 0.0 if amsgrad is False else flag(function, group, index, "amsgrad")
    return values


class _AdamBase(FusedOptimizer):
    """What Adam and AdamW share: everything but the defaults."""

    _rule = "adam"
    _never_negative = NEVER_NEGATIVE

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return state_names(group)

    def _rule_values(self, group: Group, index: int | None) -> Values:
        return rule_values(type(self).__name__, group, index)


class Adam(_AdamBase, torch.optim.Adam):
    """Adam that computes the global norm, clips, decays and updates in one fused step.

    A drop-in replacement for torch.optim.Adam: same arguments, defaults, state and checkpoints.
    Parameters and gradients are float32, float64, bfloat16 or float16; their dtypes may differ.
    Sparse gradients are refused. State is float32, or float64 for float64 parameters, unless
    `state_dtype` is set. Supports GradScaler: the step unscales gradients as it reads them, so that
    `grad_norm` is unscaled and `.grad` stays scaled.

    Args:
        params: Iterable of tensors, of `(name, tensor)` pairs or of parameter groups. No tensor may
            appear twice.
        lr: Learning rate, 0 or more. A tensor is read at every step; a CUDA tensor is read on the
            GPU.
        betas: Decay rates of the averages of the gradient and of its square, each in [0, 1).
        eps: Added to the denominator, 0 or more.
        weight_decay: Coefficient of the parameter that is added to the gradient, 0 or more.
        amsgrad: Divide by the largest average of the squared gradient so far.
        foreach: True selects torch's own foreach step, which serves as a reference. Parameter
            groups may set it instead, as `fused`, if all of them select the same step.
        maximize: Maximize the objective instead of minimizing it.
        capturable: Allow CUDA graphs to capture the step.
        differentiable: Only with `fused=False`: let autograd differentiate torch's own step.
        fused: False selects torch's own step, which supports no options.
        decoupled_weight_decay: Decay the parameter itself, as AdamW does.
        **options: See `fusedstep.optim.Options`.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type. The message is
            `Adam: <argument> must <property>, got <value>`; nothing is changed.
        RuntimeError: `differentiable=True` or `foreach=True` with `fused=True`.

    Example:
        >>> opt = fusedstep.Adam(model.parameters(), lr=1e-3, max_norm=1.0)
        >>> loss.backward()
        >>> opt.step()

    Source: Kingma and Ba 2015, Algorithm 1, https://arxiv.org/abs/1412.6980; `amsgrad`: Reddi,
    Kale and Kumar 2018, Algorithm 2.
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
        **options: Unpack[OptionArguments],
    ) -> None:
        arguments = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        params, fused, foreach = self._prepare(
            params, arguments, options, fused=fused, foreach=foreach, capturable=capturable,
            differentiable=differentiable,
        )  # fmt: skip
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip


class AdamW(_AdamBase, torch.optim.AdamW):
    """AdamW that computes the global norm, clips, decays and updates in one fused step.

    A drop-in replacement for torch.optim.AdamW: same arguments, defaults, state and checkpoints.
    Parameters and gradients are float32, float64, bfloat16 or float16; their dtypes may differ.
    Sparse gradients are refused. State is float32, or float64 for float64 parameters, unless
    `state_dtype` is set. Supports GradScaler: the step unscales gradients as it reads them, so that
    `grad_norm` is unscaled and `.grad` stays scaled.

    Args:
        params: Iterable of tensors, of `(name, tensor)` pairs or of parameter groups. No tensor may
            appear twice.
        lr: Learning rate, 0 or more. A tensor is read at every step; a CUDA tensor is read on the
            GPU.
        betas: Decay rates of the averages of the gradient and of its square, each in [0, 1).
        eps: Added to the denominator, 0 or more.
        weight_decay: The parameter is multiplied by `1 - lr * weight_decay` at every step.
        amsgrad: Divide by the largest average of the squared gradient so far.
        maximize: Maximize the objective instead of minimizing it.
        foreach: True selects torch's own foreach step, which serves as a reference. Parameter
            groups may set it instead, as `fused`, if all of them select the same step.
        capturable: Allow CUDA graphs to capture the step.
        differentiable: Only with `fused=False`: let autograd differentiate torch's own step.
        fused: False selects torch's own step, which supports no options.
        **options: See `fusedstep.optim.Options`.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type. The message is
            `AdamW: <argument> must <property>, got <value>`; nothing is changed.
        RuntimeError: `differentiable=True` or `foreach=True` with `fused=True`.

    Example:
        >>> groups = fusedstep.param_groups(model, weight_decay=0.1)
        >>> opt = fusedstep.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), max_norm=1.0)
        >>> loss.backward()
        >>> opt.step()

    Source: Loshchilov and Hutter 2019, Algorithm 2, https://arxiv.org/abs/1711.05101; `amsgrad`:
    Reddi, Kale and Kumar 2018, Algorithm 2.
    """

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
        **options: Unpack[OptionArguments],
    ) -> None:
        arguments = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "maximize": maximize, "decoupled_weight_decay": True,
        }  # fmt: skip
        params, fused, foreach = self._prepare(
            params, arguments, options, fused=fused, foreach=foreach, capturable=capturable,
            differentiable=differentiable,
        )  # fmt: skip
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach,
            capturable=capturable, differentiable=differentiable, fused=fused,
        )  # fmt: skip
