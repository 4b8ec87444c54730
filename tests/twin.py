"""What an optimizer must do, by the NumPy reference of its rule: a shadow, compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from typing import Any

import numpy as np
import torch
from helpers import assert_same_bits, from_memory_order, in_memory_order, name_of
from torch import Tensor

from fusedstep.optim.base import FusedOptimizer
from fusedstep.reference.clip import decide
from fusedstep.reference.norm import total_norm
from fusedstep.reference.storage import compute_dtype, round_to


def reference_of(rule: str) -> tuple[Callable[..., Any], type]:
    """The update of fusedstep/reference/<rule>.py and the dataclass of its hyperparameters."""
    module = import_module(f"fusedstep.reference.{rule}")
    (group,) = (one for name, one in vars(module).items() if name.endswith("Group"))
    return getattr(module, rule), group


class Twin:
    """Follows `optimizer` from now on; its parameters may be of any dtype, layout and device."""

    def __init__(self, optimizer: FusedOptimizer) -> None:
        self.optimizer = optimizer
        self.update, self.group_type = reference_of(optimizer._rule)
        self.values: dict[Tensor, np.ndarray] = {}
        self.states: dict[Tensor, dict[str, np.ndarray]] = {}
        self.steps: dict[Tensor, int] = {}  # of those that have a count
        self.norm: np.float32 | None = None

    def _take_over(self, param: Tensor) -> None:
        state = {k: v for k, v in self.optimizer.state.get(param, {}).items() if v is not None}
        self.values[param] = in_memory_order(param)
        self.steps.pop(param, None)
        if "step" in state:
            self.steps[param] = int(state.pop("step"))
        self.states[param] = {name: in_memory_order(v, param) for name, v in state.items()}

    def step(self) -> None:
        """One step of the reference, then of the optimizer, then the comparison of everything."""
        optimizer = self.optimizer
        listed = [p for group in optimizer.param_groups for p in group["params"]]
        for param in listed:
            if param not in self.values:
                self._take_over(param)
        with_grad = [p for p in listed if p.grad is not None]
        before = [p.grad.clone() for p in with_grad]
        self._reference_step(with_grad)
        optimizer.step()
        for param, grad in zip(with_grad, before, strict=True):
            assert_same_bits(param.grad, grad, "a gradient that nobody asked to rewrite")
        self.check(listed)

    def _reference_step(self, with_grad: list[Tensor]) -> None:
        optimizer = self.optimizer
        scale, found = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
        scale, found = (None if x is None else float(x) for x in (scale, found))
        grads = {p: in_memory_order(p.grad, p) for p in with_grad}
        for options in optimizer.param_groups:
            for param in options["params"]:
                if param in grads or self.states[param]:
                    self._make_state(param, optimizer._state_names(options))
        norm = None
        if grads and (optimizer.max_norm is not None or optimizer.nonfinite != "propagate"):
            norm = total_norm(list(grads.values()), optimizer.norm_type, scale or 1.0)
            with np.errstate(over="ignore"):
                self.norm = np.float32(norm)
        skip = optimizer.nonfinite != "propagate"
        decision = decide(norm, optimizer.max_norm, scale, found, skip)
        if decision.skip:
            return
        for options in optimizer.param_groups:
            for param in options["params"]:
                if param in grads:
                    self._update(param, grads[param], options, decision.multiplier)

    def _make_state(self, param: Tensor, names: tuple[str, ...]) -> None:
        there = self.optimizer.state.get(param, {})
        for name in names:
            first = self.optimizer._initial(name, there)
            if name == "step":
                self.steps.setdefault(param, int(first))
            elif name not in self.states[param]:
                dtype = compute_dtype(name_of(param.dtype))
                self.states[param][name] = np.full(param.numel(), first, dtype)

    def _update(
        self, param: Tensor, grad: np.ndarray, options: dict[str, Any], multiplier: np.float64
    ) -> None:
        names = self.optimizer._state_names(options)
        if "step" in names:
            self.steps[param] += 1
        names = [name for name in names if name != "step"]
        with np.errstate(over="ignore"):
            grad = grad.astype(self.values[param].dtype)
        value, states = self.update(
            self.values[param], grad, [self.states[param][name] for name in names],
            self.steps.get(param, 0), self._group(options), multiplier,
        )  # fmt: skip
        self.values[param] = round_to(value, name_of(param.dtype))
        self.states[param].update(zip(names, states, strict=True))

    def _group(self, options: dict[str, Any]) -> Any:
        """The reference's hyperparameters of a parameter group of the optimizer."""
        flat = options | dict(zip(("beta1", "beta2"), options.get("betas", ()), strict=False))
        flat["decoupled"] = options.get("decoupled_weight_decay")
        return self.group_type(**{f.name: float(flat[f.name]) for f in fields(self.group_type)})

    def check(self, params: list[Tensor]) -> None:
        """Compares parameters, states, step counts and the published norm."""
        for i, param in enumerate(params):
            expected = from_memory_order(self.values[param], param)
            assert_same_bits(param.detach().cpu().to(expected.dtype), expected, f"params[{i}]")
            state = self.optimizer.state.get(param, {})
            assert int(state.get("step", 0)) == self.steps.get(param, 0), f"step of params[{i}]"
            there = {name for name, value in state.items() if value is not None} - {"step"}
            assert there == self.states[param].keys(), f"state of params[{i}]"
            for name, array in self.states[param].items():
                expected = from_memory_order(array, param)
                assert_same_bits(state[name].cpu(), expected, f"{name} of params[{i}]")
        if self.norm is not None:
            expected = torch.tensor(self.norm)
            assert_same_bits(self.optimizer.grad_norm.cpu(), expected, "grad_norm")
