"""RMSprop: Tieleman and Hinton 2012, lecture 6e. Formula: kernels/optim/rules/rmsprop.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.optim.base import FusedOptimizer
from fusedstep.optim.hyperparameters import Group, label, numbers
from fusedstep.optim.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    """torch.optim.RMSprop with the global-norm clip inside `step()`, in two launches a step.

    Tieleman and Hinton 2012, Neural Networks for Machine Learning, lecture 6e; `centered`: Graves
    2013, equations 38 to 40, https://arxiv.org/abs/1308.0850. As in torch, `eps` is added after the
    square root. `momentum` and `centered` may be switched on between steps.

    Arguments, defaults, state and checkpoints are those of torch.optim.RMSprop, and those of
    fusedstep.optim.Options more. torch has no fused step here: `fused` is this project's, as in the
    other optimizers.

    Parameters are float32, float64, bfloat16 or float16; gradients may be of another of these.
    State is float32, or float64 for float64 parameters. `fused=False` or `foreach=True` selects
    torch's own step. GradScaler's loss scale is divided out as the gradient is read.

    Raises:
        ValueError, TypeError: `RMSprop: <argument> must <property>, got <value>`; nothing changed.
        RuntimeError: `differentiable=True`, as torch's fused steps.
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
        **options: Unpack[Options],
    ) -> None:
        arguments = {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay,
            "momentum": momentum, "centered": centered, "maximize": maximize,
        }  # fmt: skip
        self._prepare(
            arguments, foreach=foreach, fused=fused, differentiable=differentiable, options=options
        )
        super().__init__(
            params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize,
            differentiable,
        )  # fmt: skip

    def _state_names(self, group: Group) -> tuple[str, ...]:
        names = ["step", "square_avg"]
        names += ["momentum_buffer"] * (group["momentum"] > 0)
        names += ["grad_avg"] * bool(group["centered"])
        return tuple(names)

    def _fields(self, group: Group, index: int | None) -> list[float]:
        name, centered = type(self).__name__, group["centered"]
        state_dtype = self._chosen["mode"].of(group).state_dtype
        if centered and state_dtype is not None:
            # square_avg - grad_avg^2, a small difference, would round below zero: its root is NaN.
            must = f"be False where state_dtype={state_dtype!r} rounds what it subtracts"
            refuse(name, label(index, "centered"), must, centered)
        keys = ("alpha", "eps", "weight_decay", "momentum")
        return [*numbers(name, group, index, keys), float(centered)]
