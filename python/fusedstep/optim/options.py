"""The arguments that torch's classes lack: checked when they are set, readable as attributes."""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from fusedstep.checks import (
    refuse,
    require_beta,
    require_count,
    require_norm_type,
    require_number,
)
from fusedstep.optim.modes import Mode, require_mode

NONFINITE = ("propagate", "skip", "error")


class Options(TypedDict, total=False):
    """The keyword arguments of every optimizer, beside those of its namesake in torch.optim.

    max_norm: clip all groups' gradients together to this norm (in units of the gradient) inside
        `step()`, by torch's coefficient min(1, max_norm / (norm + 1e-6)). `.grad` itself is not
        rewritten. None: no clip. Of DTensors it is the norm of the whole on all meshes, the same on
        every rank; all ranks of a mesh make every step. Plain tensors count as they are here.
    norm_type: 2, 1 or inf.
    nonfinite: "propagate" as torch; "skip": where a gradient or the norm is not finite,
        parameters, state and step counts stay as they were, decided on the device; "error":
        RuntimeError in that case, nothing changed (this waits for the device).
    state_dtype: what the rule's state is kept in. None: float32, or float64 for float64 parameters;
        torch.bfloat16: half of that, rounded stochastically; "int8": a quarter, as codes with a
        float32 scale for each 128 elements in memory, in an entry `<name>_scale` beside it. Not
        for float64 parameters; "int8" not for DTensors.
    master: where a bfloat16 parameter keeps the float32 value that is updated. "float32": in a copy
        (4 bytes an element; what is written to the parameter from outside is overwritten by the
        next step); "remainder": the 16 bits that the parameter lacks of it (2 bytes; the parameter
        is the nearest bfloat16, ties away from zero; what is written from outside counts, up to
        those bits). None: nowhere, each update is rounded to nearest.
    stochastic_rounding: without a master, bfloat16 parameters are rounded up or down by chance,
        so that updates below half a bfloat16's last bit are not lost but right in the mean.
    seed: in [0, 2^64), of all stochastic rounding: the same seed gives the same bits on every
        device, for any number of threads. A checkpoint has the count of steps, from which the
        numbers go on, not the seed. The shards of a DTensor use the same random numbers.
    ema_decay: in [0, 1): keep an exponential moving average of the parameters, updated in the same
        pass; see `ema_parameters` and `swap_ema`. None: no average.

    A parameter group may have a `state_dtype`, `master` and `stochastic_rounding` of its own, such
    as {"params": norms, "master": None}. Like all options, they are not changed by a checkpoint.
    """

    max_norm: float | None
    norm_type: float
    nonfinite: str
    state_dtype: torch.dtype | str | None
    master: str | None
    stochastic_rounding: bool
    seed: int
    ema_decay: float | None


class OptionAttributes:
    """The options as attributes of the optimizer; the clip and `nonfinite` may be set later."""

    def _set_options(
        self,
        native: bool,
        *,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        nonfinite: str = "propagate",
        state_dtype: torch.dtype | str | None = None,
        master: str | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        ema_decay: float | None = None,
    ) -> None:
        """Comes before the constructor of torch's class; `native`: the step is ours."""
        self._native = native
        # One object and not an attribute each: the trainers' wrappers inherit the setters below and
        # find this by looking the name up in the optimizer they wrap.
        self._chosen: dict[str, Any] = {"swapped": False}
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.nonfinite = nonfinite
        self._set_mode(Mode(state_dtype, master, stochastic_rounding))
        self._set_seed(seed)
        self._set_ema_decay(ema_decay)

    @property
    def max_norm(self) -> float | None:
        """The global norm to clip to in `step()`, in units of the gradient; None: no clip."""
        return self._chosen["max_norm"]

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        self._refuse_beside_torch("max_norm", value, None)
        if value is not None:
            value = require_number(type(self).__name__, "max_norm", value)
        self._chosen["max_norm"] = value

    @property
    def norm_type(self) -> float:
        """The order of the norm: 2, 1 or inf."""
        return self._chosen["norm_type"]

    @norm_type.setter
    def norm_type(self, value: float) -> None:
        self._chosen["norm_type"] = require_norm_type(type(self).__name__, value)

    @property
    def nonfinite(self) -> str:
        """What a step does where a gradient or the norm is not finite."""
        return self._chosen["nonfinite"]

    @nonfinite.setter
    def nonfinite(self, value: str) -> None:
        if value not in NONFINITE:
            must = f"be one of {', '.join(NONFINITE)}"
            refuse(type(self).__name__, "nonfinite", must, repr(value))
        self._refuse_beside_torch("nonfinite", value, "propagate")
        self._chosen["nonfinite"] = value

    @property
    def state_dtype(self) -> torch.dtype | str | None:
        """What state is kept in where a group does not say otherwise; None: as it is computed."""
        return self._chosen["mode"].state_dtype

    @property
    def master(self) -> str | None:
        """Where the float32 values of bfloat16 parameters are, if a group says nothing else."""
        return self._chosen["mode"].master

    @property
    def stochastic_rounding(self) -> bool:
        """Whether bfloat16 parameters are rounded by chance, if a group says nothing else."""
        return self._chosen["mode"].stochastic_rounding

    def _set_mode(self, mode: Mode) -> None:
        mode = require_mode(type(self).__name__, mode)
        for key, value, default in zip(Mode._fields, mode, Mode(), strict=True):
            self._refuse_beside_torch(key, value, default)
        self._chosen["mode"] = mode

    @property
    def seed(self) -> int:
        """The seed of all stochastic rounding."""
        low, high = self._chosen["seed_halves"]
        return int(high) << 32 | int(low)

    def _set_seed(self, value: int) -> None:
        value = require_count(type(self).__name__, "seed", value, below=2**64)
        self._refuse_beside_torch("seed", value, 0)
        # A float64, which the ops take, holds 32 bits of an integer, not 64.
        self._chosen["seed_halves"] = (float(value & 0xFFFFFFFF), float(value >> 32))

    @property
    def ema_decay(self) -> float | None:
        """What the average of the parameters keeps of itself at each step; None: no average."""
        return self._chosen["ema_decay"]

    def _set_ema_decay(self, value: float | None) -> None:
        self._refuse_beside_torch("ema_decay", value, None)
        if value is not None:
            value = require_beta(type(self).__name__, "ema_decay", value)
        self._chosen["ema_decay"] = value

    def _refuse_beside_torch(self, argument: str, value: Any, default: Any) -> None:
        if not self._native and value != default:
            must = f"be {default!r} where fused=False or foreach=True asks for torch's own step"
            refuse(type(self).__name__, argument, must, repr(value))
