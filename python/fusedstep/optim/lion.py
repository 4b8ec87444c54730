"""Lion. The formula is in kernels/optim/rules/lion.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fusedstep.optim.hyperparameters import Group, Values, betas, numbers
from fusedstep.optim.optimizer import FusedOptimizer
from fusedstep.optim.options import OptionArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Lion(FusedOptimizer):
    """Lion that computes the global norm, clips, decays and updates in one fused step.

    The update is the sign of a moving average, so `lr` should be 3 to 10 times smaller than
    AdamW's, and `weight_decay`, which is multiplied by `lr`, larger by the same factor. torch.optim
    has no Lion. Parameters and gradients are float32, float64, bfloat16 or float16; their dtypes
    may differ. Sparse gradients are refused. State is float32, or float64 for float64 parameters,
    unless `state_dtype` is set. Supports GradScaler: the step unscales gradients as it reads them,
    so that `grad_norm` is unscaled and `.grad` stays scaled.

    Args:
        params: Iterable of tensors, of `(name, tensor)` pairs or of parameter groups. No tensor may
            appear twice.
        lr: Learning rate, 0 or more. A tensor is read at every step; a CUDA tensor is read on the
            GPU.
        betas: Decay rates of the average in the update and of the average kept as `exp_avg`, each
            in [0, 1).
        weight_decay: The parameter is multiplied by `1 - lr * weight_decay` at every step.
        maximize: Maximize the objective instead of minimizing it.
        capturable: Allow CUDA graphs to capture the step.
        **options: See `fusedstep.optim.Options`.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type. The message is
            `Lion: <argument> must <property>, got <value>`; nothing is changed.

    Example:
        >>> opt = fusedstep.Lion(model.parameters(), lr=1e-4, weight_decay=1.0, max_norm=1.0)
        >>> loss.backward()
        >>> opt.step()

    Source: Chen et al. 2023, Algorithm 2, https://arxiv.org/abs/2302.06675.
    """

    _rule = "lion"
    _not_in_torch = frozenset({"step"})

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = True,
        **options: Unpack[OptionArguments],
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize,
            "capturable": capturable,
        }  # fmt: skip
        params, *_ = self._prepare(params, defaults, options, capturable=capturable)
        super().__init__(params, defaults)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg",)

    def _rule_values(self, group: Group, index: int | None) -> Values:
        name = type(self).__name__
        return betas(name, group, index) | numbers(name, group, index, ("weight_decay",))
