"""The arguments that torch's classes lack: checked when they are set, readable as attributes."""

from __future__ import annotations

from typing import Any, TypedDict

from fusedstep.checks import refuse, require_norm_type, require_number

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
    """

    max_norm: float | None
    norm_type: float
    nonfinite: str


class OptionAttributes:
    """The options as attributes of the optimizer, which may be set later as well."""

    def _set_options(
        self,
        native: bool,
        *,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        nonfinite: str = "propagate",
    ) -> None:
        """Comes before the constructor of torch's class; `native`: the step is ours."""
        self._native = native
        # One object and not an attribute each: the trainers' wrappers inherit the setters below and
        # find this by looking the name up in the optimizer they wrap.
        self._chosen: dict[str, Any] = {}
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.nonfinite = nonfinite

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

    def _refuse_beside_torch(self, argument: str, value: Any, default: Any) -> None:
        if not self._native and value != default:
            must = f"be {default!r} where fused=False or foreach=True asks for torch's own step"
            refuse(type(self).__name__, argument, must, repr(value))
