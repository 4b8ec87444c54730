"""torch.optim's protocol beside the step: groups, pickling, checkpoints that keep precision."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from fusedstep.checks import refuse, require_dense
from fusedstep.distributed import local
from fusedstep.optim import checkpoint
from fusedstep.optim.hyperparameters import parameter_labels
from fusedstep.optim.modes import require_mode, require_mode_of, with_mode_of
from fusedstep.optim.plans import Plans


class Protocol(torch.optim.Optimizer):
    """What torch.optim.Optimizer promises its users, kept by an optimizer whose step is ours."""

    # Entries of a parameter's state that torch's namesake does not have.
    _not_torchs: ClassVar[frozenset[str]] = frozenset()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim.Optimizer's; also refuses what the step would refuse."""
        super().add_param_group(param_group)
        if not self._native:
            return
        try:
            name, group = type(self).__name__, self.param_groups[-1]
            where = f"param_groups[{len(self.param_groups) - 1}]"
            mode = require_mode(name, self._chosen["mode"].of(group), where + "['{}']")
            group.update({key: value for key, value in mode._asdict().items() if key in group})
            labels = parameter_labels(group, f"{where}['params']")
            for label, param in zip(labels, group["params"], strict=True):
                require_dense(name, label, local(param))
                require_mode_of(name, label, param, mode)
            self._numbers(group, len(self.param_groups) - 1)
            for option, value in (("fused", True), ("differentiable", False)):
                if option in group and group[option] is None:
                    group[option] = value  # a group that torch's class has filled says None
                if group.get(option, value) != value:
                    must = f"be {value}, as for the whole optimizer"
                    refuse(name, f"{where}['{option}']", must, group[option])
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
        chosen = self._chosen | {"swapped": False}  # a copy may keep what was swapped in
        return super().__getstate__() | {"_native": self._native, "_chosen": chosen}

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
        """As torch.optim.Optimizer's, but state keeps its precision and this optimizer's modes.

        torch casts all state to the parameter's dtype, which would round the float32 moments of a
        bfloat16 parameter. Here floating-point state, such as torch.optim saves, is converted to
        what the optimizer keeps (`state_dtype`); all else is taken as it is, bit for bit.

        Raises:
            ValueError, TypeError: the checkpoint is of another mode or shape, or damaged; nothing
                changed. `to_torch_state_dict` makes one that every mode loads.
        """
        loaded: dict[str, Any] = {}
        # Registered last, this sees the dictionary as the user's own hooks leave it.
        before = self.register_load_state_dict_pre_hook(
            lambda _, final: self._accept(final, loaded)
        )
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

    def _accept(self, final: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
        """The dictionary with our modes instead of its own; refuses state that does not fit."""
        own, groups = self.param_groups, final["param_groups"]
        if self._native and _sizes(groups) == _sizes(own):  # torch refuses others, in its words
            groups = list(map(with_mode_of, own, groups))
            count = 0
            for g, group in enumerate(groups):
                completed = self._completed(group)
                self._numbers(completed, g)
                kept = self._kept(completed)
                labels = parameter_labels(own[g], first=count)
                count += len(labels)
                for label, param, key in zip(
                    labels, own[g]["params"], group["params"], strict=True
                ):
                    saved = final["state"].get(key, {})
                    checkpoint.require_loadable(type(self).__name__, label, param, saved, kept)
            final = final | {"param_groups": groups}
        loaded.update(final)
        return final

    def _completed(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A group of a checkpoint with what it leaves out, as it will be loaded."""
        return self.defaults | saved

    def _restore_precision(self, loaded: dict[str, Any]) -> None:
        if not self._native:
            return
        for own, saved in zip(self.param_groups, loaded["param_groups"], strict=True):
            kept = self._kept(own)
            for param, key in zip(own["params"], saved["params"], strict=True):
                entries = checkpoint.restored(param, loaded["state"].get(key, {}), kept)
                if entries:
                    self.state[param].update(entries)

    def to_torch_state_dict(self) -> dict[str, Any]:
        """A `state_dict()` that torch's namesake loads, and every mode of this optimizer.

        State is decoded to float32 (float64 of float64 parameters); masters, averages and whatever
        else torch does not have are left out. Lion, which has no namesake, gives that of Lion
        without modes.
        """
        return checkpoint.exported(self)


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]
