"""RMSprop, centered or not, with or without momentum. Formula: kernels/optim/rules/rmsprop.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.optim.hyperparameters import Group, Values, flag, label, numbers
from fusedstep.optim.optimizer import FusedOptimizer
from fusedstep.optim.options import OptionArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    """RMSprop that computes the global norm, clips, decays and updates in one fused step.

    A drop-in replacement for torch.optim.RMSprop: same arguments, defaults, state and checkpoints.
    `momentum` and `centered` may be switched on between steps. torch's class has no `fused`
    argument. Here `fused=False` selects torch's step, as in the other optimizers. Parameters and
    gradients are float32, float64, bfloat16 or float16; their dtypes may differ. Sparse gradients
    are refused. State is float32, or float64 for float64 parameters, unless `state_dtype` is set.
    Supports GradScaler: the step unscales gradients as it reads them, so that `grad_norm` is
    unscaled and `.grad` stays scaled.

    Args:
        params: Iterable of tensors, of `(name, tensor)` pairs or of parameter groups. No tensor may
            appear twice.
        lr: Learning rate, 0 or more. A tensor is read at every step; a CUDA tensor is read on the
            GPU.
        alpha: Decay rate of the average of the squared gradient, 0 or more.
        eps: Added to the square root of that average, also if `centered`; 0 or more.
        weight_decay: Coefficient of the parameter that is added to the gradient, 0 or more.
        momentum: Factor of the momentum buffer, 0 or more; 0: no buffer.
        centered: Divide by the standard deviation: subtract the squared average of the gradient.
            A variance that rounding makes negative counts as 0; torch takes its root, which is NaN.
            Where gradients stay constant, the variance goes to 0 and the step to `lr * grad / eps`,
            so choose a larger `eps`. Not supported with `state_dtype`.
        capturable: Allow CUDA graphs to capture the step.
        foreach: True selects torch's own foreach step, which serves as a reference. Parameter
            groups may set it instead, as `fused`, if all of them select the same step.
        maximize: Maximize the objective instead of minimizing it.
        differentiable: Only with `fused=False`: let autograd differentiate torch's own step.
        fused: False selects torch's own step, which supports no options.
        **options: See `fusedstep.optim.Options`.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type. The message is
            `RMSprop: <argument> must <property>, got <value>`; nothing is changed.
        RuntimeError: `differentiable=True` or `foreach=True` with `fused=True`.

    Example:
        >>> opt = fusedstep.RMSprop(model.parameters(), lr=1e-3, momentum=0.9, max_norm=1.0)
        >>> loss.backward()
        >>> opt.step()

    Source: Tieleman and Hinton 2012, Neural Networks for Machine Learning, lecture 6e; `centered`:
    Graves 2013, equations 38 to 40, https://arxiv.org/abs/1308.0850.
    """

    _rule = "rmsprop"
    _never_negative = frozenset({"square_avg"})

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        arguments = {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay,
            "momentum": momentum, "centered": centered, "maximize": maximize,
        }  # fmt: skip
        params, _, foreach = self._prepare(
            params, arguments, options, fused=fused, foreach=foreach, capturable=capturable,
            differentiable=differentiable,
        )  # fmt: skip
        super().__init__(
            params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize,
            differentiable,
        )  # fmt: skip

    def _state_names(self, group: Group) -> tuple[str, ...]:
        names = ["step", "square_avg"]
        names += ["momentum_buffer"] * (group["momentum"] > 0)
        names += ["grad_avg"] * bool(group["centered"])
        return tuple(names)

    def _rule_values(self, group: Group, index: int | None) -> Values:
        name = type(self).__name__
        centered = 0.0 if group["centered"] is False else flag(name, group, index, "centered")
        state_dtype = self.options.mode.of(group).state_dtype
        if centered and state_dtype is not None:
            # Nothing would be left of the small difference square_avg - grad_avg^2.
            must = f"be False when state_dtype={state_dtype!r} is set"
            refuse(name, label(index, "centered"), must, bool(centered))
        keys = ("alpha", "eps", "weight_decay", "momentum")
        return numbers(name, group, index, keys) | {"centered": centered}
