"""Shadow: follows an optimizer with the NumPy reference of its rule, and compares every bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedstep.optim.optimizer import FusedOptimizer
from fusedstep.optim.state import Role, arrays_of, scale_name
from tests.reference import quantize
from tests.reference.clip import decide
from tests.reference.forms import (
    Stored,
    average,
    bfloat16_bits,
    load_state,
    master_or_written,
    store_state,
    widen,
)
from tests.reference.norm import total_norm
from tests.reference.random import exchange_bytes, random16, random_array
from tests.reference.storage import round_to
from tests.support.tensors import (
    assert_same_bits,
    bits_in_memory_order,
    from_memory_order,
    in_memory_order,
    name_of,
)


def reference_of(rule: str) -> tuple[Callable[..., Any], type]:
    """The update of tests/reference/<rule>.py and the dataclass of its hyperparameters."""
    module = import_module(f"tests.reference.{rule}")
    (group,) = (one for name, one in vars(module).items() if name.endswith("Group"))
    return getattr(module, rule), group


class Shadow:
    """Takes each step of `optimizer` in NumPy as well, for parameters of any dtype and layout."""

    def __init__(self, optimizer: FusedOptimizer) -> None:
        self.optimizer = optimizer
        self.update, self.group_type = reference_of(optimizer._rule)
        self.values: dict[Tensor, np.ndarray] = {}
        self.states: dict[Tensor, dict[str, np.ndarray]] = {}  # every entry, as it is stored
        self.steps: dict[Tensor, int] = {}  # of those that have a count
        self.norm: np.float32 | None = None

    def _take_over(self, param: Tensor) -> None:
        state = {k: v for k, v in self.optimizer.state.get(param, {}).items() if v is not None}
        self.values[param] = in_memory_order(param)
        self.steps.pop(param, None)
        if "step" in state:
            self.steps[param] = int(state.pop("step"))
        self.states[param] = {
            name: bits_in_memory_order(v, param if v.shape == param.shape else v)
            for name, v in state.items()
        }

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
            assert_same_bits(param.grad, grad, "a gradient, which a step leaves alone")
        self.check(listed)

    def _reference_step(self, with_grad: list[Tensor]) -> None:
        optimizer = self.optimizer
        scale, found = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
        scale, found = (None if x is None else float(x) for x in (scale, found))
        grads = {p: in_memory_order(p.grad, p) for p in with_grad}
        for options in optimizer.param_groups:
            for param in options["params"]:
                if param in grads or self.states[param]:
                    self._make_state(param, options)
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
                elif "ema" in self.states[param]:
                    self._rest(param)

    def _make_state(self, param: Tensor, options: dict[str, Any]) -> None:
        there, states = self.optimizer.state.get(param, {}), self.states[param]
        for array in arrays_of(param, self.optimizer._spec(options)):
            name, first = array.name, self.optimizer._initial(array.name, there)
            if array.role == Role.STEP:
                self.steps.setdefault(param, int(first))
            elif name in states:
                continue
            elif name in ("master", "ema"):
                states[name] = self.values[param].copy()
            elif name == "remainder":
                states[name] = np.zeros(param.numel(), np.uint16)
            elif name == "correction":
                states[name] = np.zeros(param.numel(), np.uint8)
            elif array.role < Role.SCALE:
                values = np.full(param.numel(), first, self.values[param].dtype)
                kinds = {torch.bfloat16: np.uint16, torch.int8: np.int8, torch.uint8: np.uint8}
                kind = kinds.get(array.dtype, values.dtype)
                nearest = np.full(param.numel(), 0x8000, np.uint16)
                self._put(param, name, store_state(values, (np.empty(0, kind),), nearest))

    def _stored(self, param: Tensor, name: str) -> Stored:
        states = self.states[param]
        return tuple(states[key] for key in (name, scale_name(name)) if key in states)

    def _put(self, param: Tensor, name: str, stored: Stored) -> None:
        self.states[param].update(zip((name, scale_name(name)), stored, strict=False))

    def _value(self, param: Tensor) -> np.ndarray:
        """What a parameter's update starts from: with its master, if it has one in any form."""
        value, states = self.values[param], self.states[param]
        if "master" in states:
            return master_or_written(states["master"], value)
        if "remainder" in states:
            return quantize.join(bfloat16_bits(value), states["remainder"])
        if "correction" in states:
            return quantize.join_in_24(bfloat16_bits(value), states["correction"])
        return value

    def _rest(self, param: Tensor) -> None:
        """A step without a gradient: only the average advances."""
        states = self.states[param]
        states["ema"] = average(states["ema"], self._value(param), self.optimizer.ema_decay)

    def _update(
        self, param: Tensor, grad: np.ndarray, options: dict[str, Any], multiplier: np.float64
    ) -> None:
        spec, states = self.optimizer._spec(options), self.states[param]
        if any(array.role == Role.STEP for array in arrays_of(param, spec)):
            self.steps[param] += 1
        names = [name for name in spec.names if name != "step"]
        with np.errstate(over="ignore"):
            grad = grad.astype(self.values[param].dtype)
        value = self._value(param)
        old = [self._stored(param, name) for name in names]
        value, new = self.update(
            value, grad, list(map(load_state, old)), self.steps.get(param, 0), self._group(options),
            multiplier,
        )  # fmt: skip
        for k, (name, form, x) in enumerate(zip(names, old, new, strict=True)):
            self._put(param, name, store_state(x, form, self._random_of_state(param, k)))
        if "master" in states:
            states["master"] = value
        if "remainder" in states:
            nearest, states["remainder"] = quantize.split(value)
            self.values[param] = widen(nearest)
        elif "correction" in states:
            random8 = self._random(param, 0) & 0xFF
            value = quantize.round_to_24_bits_stochastically(value, random8)
            nearest, states["correction"] = quantize.split_in_24(value)
            self.values[param] = widen(nearest)
        elif spec.mode.stochastic_rounding:
            bits = quantize.round_to_bfloat16_stochastically(value, self._random(param, 0))
            self.values[param] = value = widen(bits)
        else:
            self.values[param] = round_to(value, name_of(param.dtype))
            value = states.get("master", self.values[param])
        if "ema" in states:
            states["ema"] = average(states["ema"], value, self.optimizer.ema_decay)

    def _random(self, param: Tensor, slot: int) -> np.ndarray:
        """The bits that arrays are rounded by: slot 0 the parameter, 1 + k the states k, k + 1."""
        listed = [p for group in self.optimizer.param_groups for p in group["params"]]
        (position,) = (i for i, other in enumerate(listed) if other is param)
        step = self.steps.get(param, 0)
        return random16(self.optimizer.seed, random_array(position, slot), step, 0, param.numel())

    def _random_of_state(self, param: Tensor, k: int) -> np.ndarray:
        """Of two states, the second has the first one's bits with their bytes exchanged."""
        bits = self._random(param, 1 + k - k % 2)
        return exchange_bytes(bits) if k % 2 else bits

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
                actual, expected = state[name].cpu(), torch.from_numpy(array)
                if name.endswith(scale_name("")):
                    actual = actual.flatten()  # which may lie in rows
                elif actual.shape == param.shape:
                    expected = from_memory_order(array, param)
                if expected.dtype == torch.uint16:
                    expected = expected.view(actual.dtype)
                assert_same_bits(actual, expected, f"{name} of params[{i}]")
        if self.norm is not None:
            expected = torch.tensor(self.norm)
            assert_same_bits(self.optimizer.grad_norm.cpu(), expected, "grad_norm")
