"""Adagrad: Duchi, Hazan and Singer 2011. The formula itself is in kernels/optim/rules/adagrad.h."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.optim.arrays import Role, arrays_of
from fusedstep.optim.base import FusedOptimizer
from fusedstep.optim.hyperparameters import Group, numbers
from fusedstep.optim.options import Options
from fusedstep.optim.state import prepare_state

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    """torch.optim.Adagrad with the global-norm clip inside `step()`, in two launches a step.

    Duchi, Hazan and Singer 2011, section 1.2, the diagonal form,
    https://jmlr.org/papers/v12/duchi11a.html. As in torch, `eps` is added after the square root,
    the rate is lr / (1 + (step - 1) * lr_decay), and the constructor makes the state, whose sum
    begins as its `initial_accumulator_value`, whatever a group says.

    Arguments, defaults, state and checkpoints are those of torch.optim.Adagrad, and those of
    fusedstep.optim.Options more. `capturable=False` refuses to be captured in a CUDA graph; torch
    has no such argument here.

    Parameters are float32, float64, bfloat16 or float16; gradients may be of another of these.
    State is float32, or float64 for float64 parameters. `fused=False` or `foreach=True` selects
    torch's own step. GradScaler's loss scale is divided out as the gradient is read.

    Raises:
        ValueError, TypeError: `Adagrad: <argument> must <property>, got <value>`; nothing changed.
        RuntimeError: `differentiable=True`, as torch's fused step.
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
        **options: Unpack[Options],
    ) -> None:
        arguments = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps,
            "initial_accumulator_value": initial_accumulator_value, "maximize": maximize,
        }  # fmt: skip
        fused = self._prepare(
            arguments, foreach=foreach, fused=fused, differentiable=differentiable, options=options
        )
        super().__init__(
            params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, foreach,
            maximize=maximize, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self._add_default("capturable", capturable)
        if self._native:
            self._make_state()

    def _make_state(self) -> None:
        """In place of torch's, which rounds the sums of half-precision parameters."""
        self.state.clear()
        for group in self.param_groups:
            kept = self._kept(group)
            for param in group["params"]:
                # A master and an average begin as the parameter, which may still be initialised.
                arrays = arrays_of(param, kept)
                made = [a for a in arrays if a.role not in (Role.MASTER, Role.AVERAGE)]
                prepare_state(param, self.state[param], made, self._initial)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("step", "sum")

    def _initial(self, name: str, state: Mapping[str, Any]) -> float:
        return float(self.defaults["initial_accumulator_value"]) if name == "sum" else 0.0

    def _fields(self, group: Group, index: int | None) -> list[float]:
        keys = ("lr_decay", "weight_decay", "eps", "initial_accumulator_value")
        return numbers(type(self).__name__, group, index, keys)[:3]  # the last is in the state
