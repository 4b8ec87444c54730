"""The step of every optimizer beside its rule: plans looked up, clip, skip, loss scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.distributed import Place, norm_over_ranks
from fusedstep.optim.arrays import Kept
from fusedstep.optim.average import Averages
from fusedstep.optim.hyperparameters import Group, numbers, read_on_device
from fusedstep.optim.options import OptionAttributes, Options
from fusedstep.optim.plan import Plan
from fusedstep.optim.plans import Plans
from fusedstep.optim.protocol import Protocol


class FusedOptimizer(OptionAttributes, Averages, Protocol):
    """Mixed in before a class of torch.optim, of which it replaces the step and nothing else.

    With `fused=False` or `foreach=True` the step is torch's own, which serves as the reference.
    """

    _rule: ClassVar[str]  # the stem of its file in kernels/optim/rules
    _plan: ClassVar[type[Plan]] = Plan

    # What the class of a rule says of parameter group `index` (None: of the constructor's
    # arguments): the entries of its parameters' state, "step" and then those of the rule in its
    # order; and the numbers of the rule's Group, checked.
    _state_names: Callable[[Group], tuple[str, ...]]
    _fields: Callable[[Group, int | None], Sequence[float]]

    # Those states that are never negative: 8 bits hold them without a sign.
    _never_negative: ClassVar[frozenset[str]] = frozenset()

    def _kept(self, group: Group) -> Kept:
        mode, average = self._chosen["mode"].of(group), self._chosen["ema_decay"] is not None
        return Kept(self._state_names(group), self._never_negative, mode, average)

    def _initial(self, name: str, state: Mapping[str, Any]) -> float:
        """What the entry `name` of a parameter's state begins with; `state`: those there are."""
        return 0.0

    _table_op = torch.ops.fusedstep.table_step_.default

    def _prepare(
        self,
        arguments: Group,
        *,
        foreach: bool | None,
        fused: bool | None,
        differentiable: bool,
        options: Options,
    ) -> bool | None:
        """Checks a constructor's arguments before torch's class sees them; returns its `fused`."""
        native = fused is not False and not (foreach and not fused)
        self._set_options(native, **options)
        self._plans = Plans(type(self).__name__, self._plan)
        self._norm: Tensor | None = None
        self._step_supports_amp_scaling = native
        if native:
            self._numbers(arguments, None)
            if differentiable:
                raise RuntimeError("`fused` does not support `differentiable`")
            if foreach:
                raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        return True if native else fused

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm before clipping in the last step with gradients: 0-d float32 on their device.

        Of DTensors it is that of the whole, with the same bits on every rank. None before the first
        step and where neither `max_norm` nor `nonfinite` asked for it.
        """
        return None if self._norm is None else self._norm.to(torch.float32)

    # --- the step ---------------------------------------------------------------------------

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One update: step(closure=None), where `closure` re-evaluates the model and returns the
        loss, as in torch.optim. Hooks are shown the arguments as they were given.
        """
        if torch.compiler.is_compiling():
            return self._step_outside_graph(*args, **kwargs)
        # torch's wrapper costs as much as the rest of a small step; it is for hooks and profilers.
        watched = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        )
        step = self._watched_step if watched else self._plain_step
        return step(*args, **kwargs)

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
    def _step_outside_graph(self, *args: Any, **kwargs: Any) -> Any:
        """A compiled function breaks here: addresses are compared and tables kept, eagerly."""
        return self.step(*args, **kwargs)

    def _step(self) -> None:
        self._require_own_values()
        values = self._all_numbers()  # refuses numbers that are out of range
        kept = [self._kept(group) for group in self.param_groups]
        fits = self._plans.fit(self.param_groups, self.state, kept)
        work = self._look() if fits else {}
        try:
            if not fits or not all(plan.refresh() for plan in work.values()):
                self._plans.make(self.param_groups, self.state, kept, self._initial)
                work = self._look()
                for plan in work.values():
                    if not plan.refresh() and not plan.refresh_by_copies():
                        raise RuntimeError(f"{plan.function}: a table refused tensors just checked")
            if work or self._plans.shared:
                self._write(work, values)  # all that can be refused has been
        finally:
            for plan in work.values():
                plan.release()

    def _look(self) -> dict[Place, Plan]:
        """The plans of the places where there are gradients now."""
        return {place: plan for place, plan in self._plans.items() if plan.look()}

    def _write(self, work: dict[Place, Plan], values: list[float]) -> None:
        self._require_capturable(work)
        wants_norm = self.max_norm is not None or self.nonfinite != "propagate"
        if wants_norm and self._plans.flattened:
            must, got = "be a DTensor (fully_shard) where a norm is asked for", "FSDP's older slice"
            refuse(type(self).__name__, self._plans.flattened, must, got, TypeError)
        max_norm = -1.0 if self.max_norm is None else self.max_norm
        several = len(work) > 1 or self._plans.shared
        total = self._norm_of_places(work) if wants_norm and several else None
        for place, plan in work.items():
            device = place.device
            norm, norm_type = None, 0.0  # 0: the op computes no norm
            if total is not None:
                norm = total.to(device)
            elif wants_norm:
                norm = torch.empty((), dtype=torch.float64, device=device)
                norm_type = self.norm_type
            self._table_op(
                plan.table.address, self._rule, plan.params[0], values, self._lr_tensors(device),
                norm, norm_type, self._scalar("grad_scale", device),
                self._scalar("found_inf", device), max_norm, self.nonfinite != "propagate",
            )  # fmt: skip
            plan.finish()
            total = norm if total is None else total
        self._norm = total
        if self.nonfinite == "error":
            self._raise_nonfinite()

    def _norm_of_places(self, work: dict[Place, Plan]) -> Tensor:
        """The norm over several devices and ranks: 0-d float64 on the first device.

        Ranks may differ in which DTensors have gradients, but not in how often they communicate.
        """
        norms = {
            place: torch.zeros((), dtype=torch.float64, device=place.device)
            for place in (*self._plans.shared, *work)
        }
        for place, plan in work.items():
            scale = self._scalar("grad_scale", place.device)
            torch.ops.fusedstep.table_norm_(plan.table.address, norms[place], self.norm_type, scale)
        return norm_over_ranks(norms, self.norm_type)

    def _numbers(self, group: Group, index: int | None) -> list[float]:
        """The numbers of a parameter group in the order of csrc/rule_groups.h, checked."""
        on_device = read_on_device(group["lr"])
        rate = [0.0] if on_device else numbers(type(self).__name__, group, index, ("lr",))
        chosen = self._chosen
        return [
            *rate, float(on_device), float(group["maximize"]), chosen["ema_decay"] or 0.0,
            float(chosen["mode"].of(group).stochastic_rounding),
            *chosen["seed_halves"], *self._fields(group, index),
        ]  # fmt: skip

    def _all_numbers(self) -> list[float]:
        return [n for g, group in enumerate(self.param_groups) for n in self._numbers(group, g)]

    def _scalar(self, name: str, device: torch.device) -> Tensor | None:
        """GradScaler's `grad_scale` or `found_inf`, where it has set one, on `device`."""
        value = getattr(self, name, None)
        return None if value is None else float32_on(device, value)

    def _lr_tensors(self, device: torch.device) -> list[Tensor]:
        rates = [group["lr"] for group in self.param_groups]
        return [float32_on(device, lr) for lr in rates if read_on_device(lr)]

    def _raise_nonfinite(self) -> None:
        found_inf = getattr(self, "found_inf", None)
        skipped_by_scaler = found_inf is not None and bool(found_inf)
        norm = float(self.grad_norm)
        if not math.isfinite(norm) and not skipped_by_scaler:
            raise RuntimeError(
                f"{type(self).__name__}: the gradients' norm must be finite where "
                f"nonfinite='error', got {norm}; nothing was changed"
            )

    def _require_capturable(self, work: dict[Place, Plan]) -> None:
        on_gpu = any(place.device.type == "cuda" for place in work)
        if not on_gpu or not torch.cuda.is_current_stream_capturing():
            return
        name, rest = type(self).__name__, "while a CUDA graph is captured, got"
        if not all(group.get("capturable", True) for group in self.param_groups):
            raise RuntimeError(f"{name}: capturable must be True in every group {rest} False")
        if self.nonfinite == "error":
            raise RuntimeError(f"{name}: nonfinite must be 'propagate' or 'skip' {rest} 'error'")


def float32_on(device: torch.device, value: Tensor) -> Tensor:
    """`value` as float32 on `device`, without waiting for a GPU unless the CPU is to read it."""
    return value.to(device, torch.float32, non_blocking=device.type == "cuda")
