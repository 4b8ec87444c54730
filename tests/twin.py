"""What AdamW must do, by the NumPy reference: a shadow of an optimizer, compared bit for bit."""

from __future__ import annotations

import numpy as np
import torch
from helpers import assert_same_bits, from_memory_order, in_memory_order, name_of
from torch import Tensor

import fusedstep
from fusedstep.reference.adam import AdamGroup, adam
from fusedstep.reference.clip import decide
from fusedstep.reference.norm import total_norm
from fusedstep.reference.storage import compute_dtype, round_to

STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class Twin:
    """Follows `optimizer` from now on; its parameters may be of any dtype, layout and device."""

    def __init__(self, optimizer: fusedstep.AdamW) -> None:
        self.optimizer = optimizer
        self.values: dict[Tensor, np.ndarray] = {}
        self.states: dict[Tensor, list[np.ndarray]] = {}
        self.steps: dict[Tensor, int] = {}
        self.norm: np.float32 | None = None

    def _take_over(self, param: Tensor) -> None:
        state = self.optimizer.state.get(param, {})
        self.values[param] = in_memory_order(param)
        self.steps[param] = int(state.get("step", 0))
        zeros = np.zeros(param.numel(), compute_dtype(name_of(param.dtype)))
        self.states[param] = [
            in_memory_order(state[name], param) if name in state else zeros for name in STATES
        ]

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
            group = AdamGroup(
                float(options["lr"]), *map(float, options["betas"]), options["eps"],
                options["weight_decay"], True, options["maximize"], options["amsgrad"],
            )  # fmt: skip
            for param in options["params"]:
                if param in grads:
                    self._update(param, grads[param], group, decision.multiplier)

    def _update(
        self, param: Tensor, grad: np.ndarray, group: AdamGroup, multiplier: np.float64
    ) -> None:
        self.steps[param] += 1
        with np.errstate(over="ignore"):
            grad = grad.astype(self.values[param].dtype)
        value, states = adam(
            self.values[param], grad, self.states[param], self.steps[param], group, multiplier
        )
        self.values[param] = round_to(value, name_of(param.dtype))
        self.states[param] = states + self.states[param][len(states) :]

    def check(self, params: list[Tensor]) -> None:
        """Compares parameters, states, step counts and the published norm."""
        for i, param in enumerate(params):
            expected = from_memory_order(self.values[param], param)
            assert_same_bits(param.detach().cpu().to(expected.dtype), expected, f"params[{i}]")
            state = self.optimizer.state.get(param, {})
            assert int(state.get("step", 0)) == self.steps[param], f"step of params[{i}]"
            for name, array in zip(STATES, self.states[param], strict=True):
                if name in state:
                    expected = from_memory_order(array, param)
                    assert_same_bits(state[name].cpu(), expected, f"{name} of params[{i}]")
        if self.norm is not None:
            expected = torch.tensor(self.norm)
            assert_same_bits(self.optimizer.grad_norm.cpu(), expected, "grad_norm")
