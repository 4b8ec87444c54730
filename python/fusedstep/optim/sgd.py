"""SGD with momentum, dampening and Nesterov momentum. Formula: kernels/optim/rules/sgd.h."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.optim.hyperparameters import Group, Values, flag, numbers, signed
from fusedstep.optim.optimizer import FusedOptimizer
from fusedstep.optim.options import OptionArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGD(FusedOptimizer, torch.optim.SGD):
    """SGD that computes the global norm, clips, decays and updates in one fused step.

    A drop-in replacement for torch.optim.SGD: same arguments, defaults, state and checkpoints. In
    addition to `momentum_buffer`, a parameter's state has `step`, which counts the buffer's
    updates, so the kernel can tell the first one; torch ignores it. Without momentum there is no
    state. Parameters and gradients are float32, float64, bfloat16 or float16; their dtypes may
    differ. Sparse gradients are refused. State is float32, or float64 for float64 parameters,
    unless `state_dtype` is set. Supports GradScaler: the step unscales gradients as it reads them,
    so that `grad_norm` is unscaled and `.grad` stays scaled.

    Args:
        params: Iterable of tensors, of `(name, tensor)` pairs or of parameter groups. No tensor may
            appear twice.
        lr: Learning rate, 0 or more. A tensor is read at every step; a CUDA tensor is read on the
            GPU.
        momentum: Factor of the momentum buffer, 0 or more; 0: no buffer.
        dampening: Each gradient is multiplied by `1 - dampening` before it is added to the buffer,
            except the first one. With `dampening=momentum` it is a moving average of the gradients.
        weight_decay: Coefficient of the parameter that is added to the gradient, 0 or more.
        nesterov: Use Nesterov momentum; needs momentum and no dampening.
        maximize: Maximize the objective instead of minimizing it.
        foreach: True selects torch's own foreach step, which serves as a reference. Parameter
            groups may set it instead, as `fused`, if all of them select the same step.
        differentiable: Only with `fused=False`: let autograd differentiate torch's own step.
        fused: False selects torch's own step, which supports no options.
        capturable: Allow CUDA graphs to capture the step. Not an argument of torch's class.
        **options: See `fusedstep.optim.Options`.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type. The message is
            `SGD: <argument> must <property>, got <value>`; nothing is changed.
        RuntimeError: `differentiable=True` or `foreach=True` with `fused=True`.

    Example:
        >>> opt = fusedstep.SGD(model.parameters(), lr=0.1, momentum=0.9, max_norm=1.0)
        >>> loss.backward()
        >>> opt.step()

    Source: Polyak 1964; `nesterov`: Sutskever, Martens, Dahl and Hinton 2013, section 2, in torch's
    form.
    """

    _rule = "sgd"
    _not_in_torch = frozenset({"step"})

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = True,
        **options: Unpack[OptionArguments],
    ) -> None:
        arguments = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize,
        }  # fmt: skip
        params, fused, foreach = self._prepare(
            params, arguments, options, fused=fused, foreach=foreach, capturable=capturable,
            differentiable=differentiable, extra_defaults={"capturable": capturable},
        )  # fmt: skip
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize,
            foreach=foreach, differentiable=differentiable, fused=fused,
        )  # fmt: skip

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("step", "momentum_buffer") if group["momentum"] != 0 else ()

    def _initial(self, name: str, state: Mapping[str, Any]) -> float:
        # A buffer from torch has had its first update, though torch does not count.
        return float(name == "step" and state.get("momentum_buffer") is not None)

    def _rule_values(self, group: Group, index: int | None) -> Values:
        name = type(self).__name__
        nesterov = flag(name, group, index, "nesterov")
        values = numbers(name, group, index, ("momentum", "weight_decay"))
        dampening = signed(name, group, index, "dampening")
        if index is None and nesterov and (values["momentum"] == 0 or dampening != 0):
            # Only the constructor refuses this, as in torch.
            refuse(name, "nesterov", "be False without momentum or with dampening", True)
        return values | {"dampening": dampening, "nesterov": nesterov}
