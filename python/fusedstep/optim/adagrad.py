"""Adagrad. The formula is in kernels/optim/rules/adagrad.h."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.optim.hyperparameters import Group, Values, numbers
from fusedstep.optim.optimizer import FusedOptimizer
from fusedstep.optim.options import OptionArguments
from fusedstep.optim.state import Role, arrays_of, prepare_state

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    """Adagrad that computes the global norm, clips, decays and updates in one fused step.

    A drop-in replacement for torch.optim.Adagrad: same arguments, defaults, state and checkpoints.
    The constructor creates the state. Parameters and gradients are float32, float64, bfloat16 or
    float16; their dtypes may differ. Sparse gradients are refused. State is float32, or float64 for
    float64 parameters, unless `state_dtype` is set. Supports GradScaler: the step unscales
    gradients as it reads them, so that `grad_norm` is unscaled and `.grad` stays scaled.

    Args:
        params: Iterable of tensors, of `(name, tensor)` pairs or of parameter groups. No tensor may
            appear twice.
        lr: Learning rate, 0 or more. A tensor is read at every step; a CUDA tensor is read on the
            GPU.
        lr_decay: The rate of step t is `lr / (1 + (t - 1) * lr_decay)`; 0 or more.
        weight_decay: Coefficient of the parameter that is added to the gradient, 0 or more.
        initial_accumulator_value: Initial value of the sum of squares, 0 or more. Parameter groups
            cannot override it.
        eps: Added to the square root of the sum, 0 or more.
        foreach: True selects torch's own foreach step, which serves as a reference. Parameter
            groups may set it instead, as `fused`, if all of them select the same step.
        maximize: Maximize the objective instead of minimizing it.
        differentiable: Only with `fused=False`: let autograd differentiate torch's own step.
        fused: False selects torch's own step, which supports no options.
        capturable: Allow CUDA graphs to capture the step. Not an argument of torch's class.
        **options: See `fusedstep.optim.Options`.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type. The message is
            `Adagrad: <argument> must <property>, got <value>`; nothing is changed.
        RuntimeError: `differentiable=True` or `foreach=True` with `fused=True`.

    Example:
        >>> opt = fusedstep.Adagrad(model.parameters(), lr=0.01, max_norm=1.0)
        >>> loss.backward()
        >>> opt.step()

    Source: Duchi, Hazan and Singer 2011, section 1.2, the diagonal form,
    https://jmlr.org/papers/v12/duchi11a.html.
    """

    _rule = "adagrad"
    _never_negative = frozenset({"sum"})

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = True,
        **options: Unpack[OptionArguments],
    ) -> None:
        arguments = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps,
            "initial_accumulator_value": initial_accumulator_value, "maximize": maximize,
        }  # fmt: skip
        params, fused, foreach = self._prepare(
            params, arguments, options, fused=fused, foreach=foreach, capturable=capturable,
            differentiable=differentiable, extra_defaults={"capturable": capturable},
        )  # fmt: skip
        super().__init__(
            params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, foreach,
            maximize=maximize, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        if self._internals.native:
            self._make_state()

    def _make_state(self) -> None:
        """Replaces torch's state, which rounds the sums of half-precision parameters.

        Masters and averages start as copies of parameters, which may be initialized later, and
        parameters on the meta device have no memory yet. The first step then makes all state:
        torch's checkpoints load nothing into entries that are missing, and initialize an optimizer
        with a step only if it has no state.
        """
        self.state.clear()
        needed = [
            (param, arrays_of(param, self._spec(group)))
            for group in self.param_groups
            for param in group["params"]
        ]
        if any(a.role in (Role.MASTER, Role.AVERAGE) for _, arrays in needed for a in arrays):
            return
        if any(param.is_meta for param, _ in needed):
            return
        for param, arrays in needed:
            prepare_state(param, self.state[param], arrays, self._initial)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("step", "sum")

    def _initial(self, name: str, state: Mapping[str, Any]) -> float:
        return float(self.defaults["initial_accumulator_value"]) if name == "sum" else 0.0

    def _rule_values(self, group: Group, index: int | None) -> Values:
        name = type(self).__name__
        numbers(name, group, index, ("initial_accumulator_value",))  # which is in the state
        return numbers(name, group, index, ("lr_decay", "weight_decay", "eps"))
