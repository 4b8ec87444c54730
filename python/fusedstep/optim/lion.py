"""Lion: Chen et al. 2023, Algorithm 2. The formula itself is in kernels/optim/rules/lion.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fusedstep.optim.base import FusedOptimizer
from fusedstep.optim.hyperparameters import Group, betas, numbers
from fusedstep.optim.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Lion(FusedOptimizer):
    """Lion with the global-norm clip inside `step()`, in two launches a step.

    Chen et al. 2023, Algorithm 2, https://arxiv.org/abs/2302.06675: the sign of a moving average
    makes the update, so that `lr` wants to be 3 to 10 times smaller than AdamW's, and
    `weight_decay`, which is multiplied by `lr`, as much larger. torch.optim has no Lion.

    Args:
        params: tensors, named tensors or groups, as for any optimizer of torch.
        lr: the rate, 0 or more; a tensor is read at every step.
        betas: of the average that makes the update and of the one that is kept, `exp_avg`.
        weight_decay: of the parameter itself, by lr * weight_decay a step.
        maximize: go up.
        capturable: False refuses to be captured in a CUDA graph.
        options: those of fusedstep.optim.Options.

    Parameters are float32, float64, bfloat16 or float16; gradients may be of another of these.
    State is float32, or float64 for float64 parameters. GradScaler's loss scale is divided out as
    the gradient is read.

    Raises:
        ValueError, TypeError: `Lion: <argument> must <property>, got <value>`; nothing changed.
    """

    _rule = "lion"
    _not_torchs = frozenset({"step"})

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = True,
        **options: Unpack[Options],
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize,
            "capturable": capturable,
        }  # fmt: skip
        self._prepare(defaults, foreach=None, fused=None, differentiable=False, options=options)
        super().__init__(params, defaults)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg",)

    def _fields(self, group: Group, index: int | None) -> list[float]:
        name = type(self).__name__
        return [*betas(name, group, index), *numbers(name, group, index, ("weight_decay",))]
