"""AdamW: Loshchilov and Hutter 2019, Algorithm 2. The formula is in kernels/optim/rules/adam.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusedstep.optim.adam import AdamRule
from fusedstep.optim.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AdamW(AdamRule, torch.optim.AdamW):
    """torch.optim.AdamW with the global-norm clip inside `step()`, in two launches a step.

    Decoupled weight decay: Loshchilov and Hutter 2019, Algorithm 2,
    https://arxiv.org/abs/1711.05101; `amsgrad`: Reddi, Kale and Kumar 2018, Algorithm 2.

    Arguments, defaults, state and checkpoints are those of torch.optim.AdamW, and those of
    fusedstep.optim.Options more.

    Parameters are float32, float64, bfloat16 or float16; gradients may be of another of these.
    State is float32, or float64 for float64 parameters. `fused=False` or `foreach=True` selects
    torch's own step. GradScaler's loss scale is divided out as the gradient is read.

    Raises:
        ValueError, TypeError: `AdamW: <argument> must <property>, got <value>`; nothing changed.
        RuntimeError: `differentiable=True`, as torch's fused step.
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
        **options: Unpack[Options],
    ) -> None:
        arguments = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "maximize": maximize, "decoupled_weight_decay": True,
        }  # fmt: skip
        fused = self._prepare(
            arguments, foreach=foreach, fused=fused, differentiable=differentiable, options=options
        )
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach,
            capturable=capturable, differentiable=differentiable, fused=fused,
        )  # fmt: skip
