"""What every fused optimizer does beside its rule: clip, skip, loss scale, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor

from fusedstep.checks import refuse, require_dense, require_norm_type, require_number
from fusedstep.optim.plan import Plan, compute_dtype
from fusedstep.optim.plans import Plans

NONFINITE = ("propagate", "skip", "error")


class FusedOptimizer(torch.optim.Optimizer):
    """Mixed in before a class of torch.optim, of which it replaces the step and nothing else.

    With `fused=False` or `foreach=True` the step is torch's own, which serves as the reference.
    """

    _table_op: ClassVar[Any]  # the op that applies the rule to a table

    # What the class of a rule says of a parameter group: the names of its states, and its
    # numbers, checked, in the order of the rule's adapter in csrc/; it has this index.
    _state_names: Callable[[dict[str, Any]], Sequence[str]]
    _fields: Callable[[dict[str, Any], int], list[float]]

    def _set_options(
        self, max_norm: float | None, norm_type: float, nonfinite: str, native: bool
    ) -> None:
        """Keeps the arguments that torch's class lacks; comes before its __init__."""
        self._native = native
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.nonfinite = nonfinite
        self._plans = Plans(type(self).__name__)
        self._norm: Tensor | None = None

    @property
    def max_norm(self) -> float | None:
        """The global norm to clip to in `step()`, in units of the gradient; None: no clip."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        self._refuse_beside_torch("max_norm", value, None)
        name = type(self).__name__
        self._max_norm = None if value is None else require_number(name, "max_norm", value)

    @property
    def norm_type(self) -> float:
        """The order of the norm: 2, 1 or inf."""
        return self._norm_type

    @norm_type.setter
    def norm_type(self, value: float) -> None:
        self._norm_type = require_norm_type(type(self).__name__, value)

    @property
    def nonfinite(self) -> str:
        """What a step does where a gradient or the norm is not finite."""
        return self._nonfinite

    @nonfinite.setter
    def nonfinite(self, value: str) -> None:
        if value not in NONFINITE:
            must = f"be one of {', '.join(NONFINITE)}"
            refuse(type(self).__name__, "nonfinite", must, repr(value))
        self._refuse_beside_torch("nonfinite", value, "propagate")
        self._nonfinite = value

    def _refuse_beside_torch(self, argument: str, value: Any, default: Any) -> None:
        if not self._native and value != default:
            must = f"be {default!r} where fused=False or foreach=True asks for torch's own step"
            refuse(type(self).__name__, argument, must, repr(value))

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm before clipping in the last step with gradients: 0-d float32 on their device.

        None before the first step and where neither `max_norm` nor `nonfinite` asked for it.
        """
        return None if self._norm is None else self._norm.to(torch.float32)

    # --- the step ---------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. `closure` re-evaluates the model and returns the loss, as in torch.optim."""
        if torch.compiler.is_compiling():
            return self._step_outside_graph(closure)
        # torch's wrapper costs as much as the rest of a small step; it is for hooks and profilers.
        watched = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        )
        arguments = () if closure is None else (closure,)  # hooks are shown what the caller gave
        return self._watched_step(*arguments) if watched else self._plain_step(*arguments)

    step.hooked = True  # tells torch.optim to leave the wrapping to us

    def _plain_step(self, closure: Callable[[], Any] | None = None) -> Any:
        if not self._native:
            step = super().step.__func__
            step = step.__wrapped__ if getattr(step, "hooked", False) else step  # hooks run once
            return step(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    _watched_step = torch.optim.Optimizer.profile_hook_step(_plain_step)

    @torch._disable_dynamo
    def _step_outside_graph(self, closure: Callable[[], Any] | None) -> Any:
        """A compiled function breaks here: addresses are compared and tables kept, eagerly."""
        return self.step(closure)

    def _step(self) -> None:
        fields = self._all_fields()  # refuses numbers that are out of range
        fits = self._plans.fit(self.param_groups, self.state, self._all_state_names())
        work = self._look() if fits else {}
        try:
            if not fits or not all(plan.refresh() for plan in work.values()):
                self._plans.make(self.param_groups, self.state, self._all_state_names())
                work = self._look()
                for plan in work.values():
                    if not plan.refresh() and not plan.refresh_by_copies():
                        raise RuntimeError(f"{plan.function}: a table refused tensors just checked")
            if work:
                self._write(work, fields)  # all that can be refused has been
        finally:
            for plan in work.values():
                plan.release()

    def _look(self) -> dict[torch.device, Plan]:
        """The plans of the devices on which there are gradients now."""
        return {device: plan for device, plan in self._plans.items() if plan.look()}

    def _write(self, work: dict[torch.device, Plan], fields: list[float]) -> None:
        self._require_capturable(work)
        wants_norm = self.max_norm is not None or self.nonfinite != "propagate"
        max_norm = -1.0 if self.max_norm is None else self.max_norm
        total = self._norm_of_devices(work) if wants_norm and len(work) > 1 else None
        for device, plan in work.items():
            norm, norm_type = None, 0.0  # 0: the op computes no norm
            if total is not None:
                norm = total.to(device)
            elif wants_norm:
                norm = torch.empty((), dtype=torch.float64, device=device)
                norm_type = self.norm_type
            self._table_op(
                plan.table.address, plan.params[0], fields, self._lr_tensors(device), norm,
                norm_type, self._scalar("grad_scale", device), self._scalar("found_inf", device),
                max_norm, self.nonfinite != "propagate",
            )  # fmt: skip
            plan.finish()
            total = norm if total is None else total
        self._norm = total
        if self.nonfinite == "error":
            self._raise_nonfinite()

    def _norm_of_devices(self, work: dict[torch.device, Plan]) -> Tensor:
        """The norm over several devices: the norm of their norms, 0-d float64 on the first."""
        norms = []
        for device, plan in work.items():
            norm = torch.empty((), dtype=torch.float64, device=device)
            scale = self._scalar("grad_scale", device)
            torch.ops.fusedstep.table_norm_(plan.table.address, norm, self.norm_type, scale)
            norms.append(norm.to(next(iter(work))))
        return torch.ops.fusedstep.total_norm(norms, self.norm_type)

    def _all_fields(self) -> list[float]:
        fields: list[float] = []
        for g, group in enumerate(self.param_groups):
            fields += self._fields(group, g)
        return fields

    def _all_state_names(self) -> list[tuple[str, ...]]:
        return [tuple(self._state_names(group)) for group in self.param_groups]

    def _scalar(self, name: str, device: torch.device) -> Tensor | None:
        """GradScaler's `grad_scale` or `found_inf`, where it has set one, on `device`."""
        value = getattr(self, name, None)
        return None if value is None else float32_on(device, value)

    def _lr_tensors(self, device: torch.device) -> list[Tensor]:
        rates = [group["lr"] for group in self.param_groups]
        return [float32_on(device, lr) for lr in rates if isinstance(lr, Tensor) and lr.is_cuda]

    def _raise_nonfinite(self) -> None:
        found_inf = getattr(self, "found_inf", None)
        skipped_by_scaler = found_inf is not None and bool(found_inf)
        norm = float(self.grad_norm)
        if not math.isfinite(norm) and not skipped_by_scaler:
            raise RuntimeError(
                f"{type(self).__name__}: the gradients' norm must be finite where "
                f"nonfinite='error', got {norm}; nothing was changed"
            )

    def _require_capturable(self, work: dict[torch.device, Plan]) -> None:
        on_gpu = any(device.type == "cuda" for device in work)
        if not on_gpu or not torch.cuda.is_current_stream_capturing():
            return
        name, rest = type(self).__name__, "while a CUDA graph is captured, got"
        if not all(group["capturable"] for group in self.param_groups):
            raise RuntimeError(f"{name}: capturable must be True in every group {rest} False")
        if self.nonfinite == "error":
            raise RuntimeError(f"{name}: nonfinite must be 'propagate' or 'skip' {rest} 'error'")

    # --- torch.optim's protocol -------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim.Optimizer's; also refuses what the step would refuse."""
        super().add_param_group(param_group)
        if not self._native:
            return
        try:
            group, where = self.param_groups[-1], f"param_groups[{len(self.param_groups) - 1}]"
            for i, param in enumerate(group["params"]):
                require_dense(type(self).__name__, f"{where}['params'][{i}]", param)
            self._fields(group, len(self.param_groups) - 1)
            for option in ("fused", "differentiable"):
                if group[option] != self.defaults[option]:
                    must = f"be {self.defaults[option]}, as for the whole optimizer"
                    refuse(type(self).__name__, f"{where}['{option}']", must, group[option])
        except Exception:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        options = ("_native", "_max_norm", "_norm_type", "_nonfinite")
        return super().__getstate__() | {option: getattr(self, option) for option in options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = Plans(type(self).__name__)
        self._norm = None
        if self._native:
            self._step_supports_amp_scaling = True
            for group in self.param_groups:  # a checkpoint may come from another implementation
                group["fused"], group["foreach"] = True, None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim.Optimizer's, but state keeps its precision.

        torch casts floating-point state to the parameter's dtype, which would round the float32
        moments of a bfloat16 parameter. Those are taken from the checkpoint instead.
        """
        loaded: dict[str, Any] = {}
        # Registered last, this sees the dictionary as the user's own hooks leave it.
        before = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        # And this runs before the user's hooks look at what was loaded.
        after = self.register_load_state_dict_post_hook(
            lambda _: self._restore_precision(loaded), prepend=True
        )
        plans = self._plans
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()
        self._plans = plans  # for their tables: captured graphs may point to them
        self._plans.forget()

    def _restore_precision(self, loaded: dict[str, Any]) -> None:
        if not self._native:
            return
        saved = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, param in zip(saved, params, strict=True):
            dtype = compute_dtype(param.dtype)
            for name, value in loaded["state"].get(key, {}).items():
                cast = isinstance(value, Tensor) and value.is_floating_point() and name != "step"
                if cast and value.dtype != param.dtype and dtype != param.dtype:
                    self.state[param][name] = value.to(param.device, dtype, copy=True)


def float32_on(device: torch.device, value: Tensor) -> Tensor:
    """`value` as float32 on `device`, without waiting for a GPU unless the CPU is to read it."""
    return value.to(device, torch.float32, non_blocking=device.type == "cuda")
