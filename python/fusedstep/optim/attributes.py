"""What an optimizer has in addition to torch's attributes: its options and the last step's norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fusedstep.checks import refuse
from fusedstep.optim.options import Options
from fusedstep.optim.step import Step
from fusedstep.optim.tables import Tables


@dataclass
class Internals:
    """What an optimizer has in addition to torch's attributes.

    It is one object because wrappers such as Lightning's inherit the setters below: they find it
    through the optimizer that they wrap and change it there.
    """

    options: Options
    native: bool  # the step is fusedstep's, not torch's
    tables: Tables
    extra_defaults: dict[str, Any]  # entries of every group that torch's class lacks
    divided: bool = False  # other ranks have the other parameters; see _require_whole
    step: Step | None = None  # the last one
    norm: Tensor | None = None  # of the last step: 0-d float64
    ema_swapped_in: bool = False


class Attributes:
    """The options, which may change between steps where they have a setter, and the norm."""

    _internals: Internals

    @property
    def options(self) -> Options:
        """The options of this optimizer, checked."""
        return self._internals.options

    def _set_option(self, **changes: Any) -> None:
        internals = self._internals
        changed = replace(internals.options, **changes)
        checked = changed.checked(type(self).__name__, internals.native)
        self._require_whole(checked)
        internals.options = checked
        internals.step = None

    def _require_whole(self, options: Options) -> None:
        """Refuses what needs all gradients if this rank has only some of the parameters."""
        alone = self._internals.divided and not options.norm_groups
        for option in ("max_norm", "nonfinite") if alone else ():
            value, whole = getattr(options, option), getattr(Options, option)
            if value != whole:
                must = f"be {whole!r} in a ZeroRedundancyOptimizer without norm_groups=[its group]"
                refuse(type(self).__name__, option, must, repr(value))

    @property
    def max_norm(self) -> float | None:
        """The global norm to clip to in `step()`, in units of the gradient; None: do not clip."""
        return self.options.max_norm

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        self._set_option(max_norm=value)

    @property
    def norm_type(self) -> float:
        """The order of the norm: 2, 1 or inf."""
        return self.options.norm_type

    @norm_type.setter
    def norm_type(self, value: float) -> None:
        self._set_option(norm_type=value)

    @property
    def nonfinite(self) -> str:
        """What a step does if a gradient or the norm is not finite."""
        return self.options.nonfinite

    @nonfinite.setter
    def nonfinite(self, value: str) -> None:
        self._set_option(nonfinite=value)

    @property
    def norm_groups(self) -> Sequence[ProcessGroup]:
        """The process groups over which the norm is combined, after those of meshes."""
        return self.options.norm_groups

    @property
    def state_dtype(self) -> torch.dtype | str | None:
        """The dtype of the state of groups that do not override it; None: the compute dtype."""
        return self.options.state_dtype

    @property
    def master(self) -> str | None:
        """Where groups that do not override it keep float32 values of bfloat16 parameters."""
        return self.options.master

    @property
    def stochastic_rounding(self) -> bool:
        """Whether bfloat16 parameters of groups that do not override it round stochastically."""
        return self.options.stochastic_rounding

    @property
    def seed(self) -> int:
        """The seed of all stochastic rounding."""
        return self.options.seed

    @property
    def ema_decay(self) -> float | None:
        """The decay of the moving average of the parameters; None: no average."""
        return self.options.ema_decay

    @property
    def grad_attribute(self) -> str:
        """The attribute of a parameter that holds its gradient."""
        return self.options.grad_attribute

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm before clipping in the last step with gradients: 0-d float32 on their device.

        It is float32 for float64 gradients as well. With a GradScaler it is the norm of the
        unscaled gradients, which is what to log; `.grad` is still scaled after `scaler.step`.
        For DTensors it is the norm of the whole tensors, and with `norm_groups` of all parameters,
        with the same bits on every rank; a step in which no rank has gradients then gives 0. None
        before the first step, or if neither `max_norm` nor `nonfinite` requires a norm.
        """
        norm = self._internals.norm
        return None if norm is None else norm.to(torch.float32)
