"""JAX and optax: clip and step as one jitted function whose arguments are updated in place.

Runs in a process of its own, for XLA has its own threads. Nothing is written twice: parameters and
state are donated, and the gradients are read only.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np
import optax
import optax.contrib
import torch

from bench.case import MAX_NORM, Side, Work, grads_of, second_grads
from bench.peers.steps import MOST_COMPILED, arguments

Rule: TypeAlias = optax.GradientTransformation

# --- optax's namesakes with torch's arguments and meaning ---


def adamw(lr: float, betas: Any, eps: float, weight_decay: float) -> Rule:
    return optax.adamw(lr, *betas, eps, weight_decay=weight_decay)


def adam(lr: float, betas: Any, eps: float) -> Rule:
    return optax.adam(lr, *betas, eps)


def sgd(lr: float, momentum: float) -> Rule:
    return optax.sgd(lr, momentum or None)


def rmsprop(lr: float, alpha: float, eps: float, momentum: float, centered: bool) -> Rule:
    options = {"eps_in_sqrt": False, "centered": centered, "momentum": momentum or None}
    return optax.rmsprop(lr, alpha, eps, **options)


def adagrad(lr: float) -> Rule:
    """Without an epsilon: its own is inside the root, where 1e-10 is as much as 1e-5 outside."""
    return optax.adagrad(lr, initial_accumulator_value=0, eps=0)


def lion(lr: float, betas: Any, weight_decay: float) -> Rule:
    return optax.lion(lr, *betas, weight_decay=weight_decay)


def muon(
    lr: float,
    ns_coefficients: Any,
    ns_steps: int,
    momentum: float,
    eps: float,
    weight_decay: float,
    nesterov: bool,
) -> Rule:
    """Its products are in float32, where torch takes bfloat16; its momentum is bias-corrected."""
    numbers = (lr, ns_coefficients, ns_steps, momentum, eps, weight_decay)
    return optax.contrib.muon(
        *numbers, nesterov=nesterov, muon_weight_dimension_numbers=rows_are_outputs
    )


def rows_are_outputs(params: list[jax.Array]) -> list[Any]:
    """torch's convention for a weight, on which the scale of Muon's update depends."""
    return [optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0) for _ in params]


RULES: dict[str, Callable[..., Rule]] = {
    make.__name__: make for make in (adamw, adam, sgd, rmsprop, adagrad, lion, muon)
}


# --- the step ---


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Nothing but float32."""
    make = RULES.get(work.rule)
    if make is None or not work.is_float32:
        return
    options = arguments(work, *inspect.signature(make).parameters)
    if options is not None and len(work.shapes) <= MOST_COMPILED:
        steps = Steps(work, device, make(**options))
        yield Side(
            "optax, jitted", steps.sample, steps.result, steps.state_bytes, renew=steps.renew
        )


class Steps:
    """Parameters, gradients and state on XLA's device, and the jitted step."""

    def __init__(self, work: Work, device: torch.device, rule: Rule):
        if work.clip:
            rule = optax.chain(optax.clip_by_global_norm(MAX_NORM), rule)
        params = work.params(device)
        self.params = [jax.numpy.array(param.detach().numpy()) for param in params]
        self.grads = [jax.numpy.array(grad.numpy()) for grad in grads_of(params)]
        self.state = rule.init(self.params)

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.step = step

    def renew(self) -> None:
        """Takes the second gradients of the check."""
        self.grads = [jax.numpy.array(grad.numpy()) for grad in second_grads(self.result())]

    def sample(self, calls: int) -> float:
        """Seconds of so many steps, the last of which has ended."""
        begin = time.perf_counter()
        for _ in range(calls):
            self.params, self.state = self.step(self.params, self.state, self.grads)
        jax.block_until_ready((self.params, self.state))
        return time.perf_counter() - begin

    def result(self) -> list[torch.Tensor]:
        return [torch.from_numpy(np.array(param)) for param in self.params]

    def state_bytes(self) -> int:
        return sum(array.nbytes for array in jax.tree.leaves(self.state))
