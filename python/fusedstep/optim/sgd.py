"""SGD with momentum, dampening and Nesterov's. The formula is in kernels/optim/rules/sgd.h."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.optim.base import FusedOptimizer
from fusedstep.optim.hyperparameters import Group, numbers, signed
from fusedstep.optim.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGD(FusedOptimizer, torch.optim.SGD):
    """torch.optim.SGD with the global-norm clip inside `step()`, in two launches a step.

    Momentum: Polyak 1964; `nesterov`: Sutskever, Martens, Dahl and Hinton 2013, section 2, in
    torch's form, whose buffer begins as the first gradient, undampened. A moving average of the
    gradients is `dampening=momentum`.

    Arguments, defaults, state and checkpoints are those of torch.optim.SGD, and those of
    fusedstep.optim.Options more. Beside `momentum_buffer` there is `step`, the number of its
    updates, so that the device can tell a first one; torch does not mind it. Without momentum there
    is no state. `capturable=False` refuses to be captured in a CUDA graph; torch has no such
    argument here.

    Parameters are float32, float64, bfloat16 or float16; gradients may be of another of these.
    State is float32, or float64 for float64 parameters. `fused=False` or `foreach=True` selects
    torch's own step. GradScaler's loss scale is divided out as the gradient is read.

    Raises:
        ValueError, TypeError: `SGD: <argument> must <property>, got <value>`; nothing changed.
        RuntimeError: `differentiable=True`, as torch's fused step.
    """

    _rule = "sgd"
    _not_torchs = frozenset({"step"})

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
        **options: Unpack[Options],
    ) -> None:
        arguments = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize,
        }  # fmt: skip
        fused = self._prepare(
            arguments, foreach=foreach, fused=fused, differentiable=differentiable, options=options
        )
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize,
            foreach=foreach, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._add_default("capturable", capturable)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("step", "momentum_buffer") if group["momentum"] != 0 else ()

    def _initial(self, name: str, state: Mapping[str, Any]) -> float:
        # A buffer that torch made has had its first update, though nothing counted it.
        return float(name == "step" and state.get("momentum_buffer") is not None)

    def _fields(self, group: Group, index: int | None) -> list[float]:
        name, nesterov = type(self).__name__, group["nesterov"]
        momentum, weight_decay = numbers(name, group, index, ("momentum", "weight_decay"))
        dampening = signed(name, group, index, "dampening")
        if index is None and nesterov and (momentum == 0 or dampening != 0):  # later on, as torch
            refuse(name, "nesterov", "be False without momentum or with dampening", nesterov)
        return [momentum, dampening, weight_decay, float(nesterov)]
