"""torch.optim's protocol beside the step: groups, pickling, checkpoints that keep precision."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_dense
from fusedstep.distributed import local
from fusedstep.optim.arrays import compute_dtype
from fusedstep.optim.hyperparameters import parameter_labels
from fusedstep.optim.plans import Plans


class Protocol(torch.optim.Optimizer):
    """What torch.optim.Optimizer promises its users, kept by an optimizer whose step is ours."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim.Optimizer's; also refuses what the step would refuse."""
        super().add_param_group(param_group)
        if not self._native:
            return
        try:
            group, where = self.param_groups[-1], f"param_groups[{len(self.param_groups) - 1}]"
            labels = parameter_labels(group, f"{where}['params']")
            for label, param in zip(labels, group["params"], strict=True):
                require_dense(type(self).__name__, label, local(param))
            self._numbers(group, len(self.param_groups) - 1)
            for option, value in (("fused", True), ("differentiable", False)):
                if option in group and group[option] is None:
                    group[option] = value  # a group that torch's class has filled says None
                if group.get(option, value) != value:
                    must = f"be {value}, as for the whole optimizer"
                    refuse(type(self).__name__, f"{where}['{option}']", must, group[option])
        except Exception:
            self.param_groups.pop()
            raise

    def _add_default(self, name: str, value: Any) -> None:
        """Gives every group an entry that torch's class does not have, where the step is ours."""
        if not self._native:
            return
        self.defaults[name] = value
        for group in self.param_groups:
            group.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_native": self._native, "_chosen": dict(self._chosen)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = Plans(type(self).__name__, self._plan)
        self._norm = None
        if self._native:
            self._step_supports_amp_scaling = True
            for group in self.param_groups:  # a checkpoint may come from another implementation
                group.update({k: v for k, v in (("fused", True), ("foreach", None)) if k in group})
                for name, value in self.defaults.items():
                    group.setdefault(name, value)

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
