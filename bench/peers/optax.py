"""JAX and optax: clip and step as one jitted function whose arguments are updated in place.

Runs in a process of its own, for XLA has its own threads. Nothing is written twice: parameters and
state are donated, and the gradients are read only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib
import torch

from bench.case import MAX_NORM, Side, Work
from bench.peers.steps import arguments

MUON = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps")


def rule_of(work: Work) -> optax.GradientTransformation | None:
    """optax's namesake with torch's meaning; None where it has none."""
    if work.rule == "adamw" and (o := arguments(work, "lr", "betas", "eps", "weight_decay")):
        b1, b2 = o["betas"]
        return optax.adamw(o["lr"], b1, b2, o["eps"], weight_decay=o["weight_decay"])
    if work.rule == "adam" and (o := arguments(work, "lr", "betas", "eps")):
        return optax.adam(o["lr"], *o["betas"], o["eps"])
    if work.rule == "sgd" and (o := arguments(work, "lr", "momentum")):
        return optax.sgd(o["lr"], o["momentum"] or None)
    if work.rule == "rmsprop" and (
        o := arguments(work, "lr", "alpha", "eps", "momentum", "centered")
    ):
        return optax.rmsprop(
            o["lr"],
            o["alpha"],
            o["eps"],
            eps_in_sqrt=False,
            centered=o["centered"],
            momentum=o["momentum"] or None,
        )
    if work.rule == "adagrad" and (o := arguments(work, "lr")):
        # Its epsilon is inside the root, where torch's 1e-10 would be the square of 1e-5.
        return optax.adagrad(o["lr"], initial_accumulator_value=0, eps=0)
    if work.rule == "lion" and (o := arguments(work, "lr", "betas", "weight_decay")):
        return optax.lion(o["lr"], *o["betas"], weight_decay=o["weight_decay"])
    if work.rule == "muon" and (o := arguments(work, *MUON)):
        # Newton-Schulz in float32, where torch takes bfloat16; momentum with a bias correction.
        return optax.contrib.muon(
            o["lr"],
            o["ns_coefficients"],
            o["ns_steps"],
            o["momentum"],
            o["eps"],
            o["weight_decay"],
            nesterov=o["nesterov"],
            muon_weight_dimension_numbers=rows_are_outputs,
        )
    return None


def rows_are_outputs(params: list[jax.Array]) -> list[Any]:
    """torch's convention for a weight, on which the scale of Muon's update depends."""
    return [optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0) for _ in params]


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Nothing but float32."""
    rule = rule_of(work)
    if rule and (work.mode, work.dtype) == ("float32", torch.float32):
        yield side(work, device, rule)


class Steps:
    """Parameters, gradients and state on XLA's device, and the jitted step."""

    def __init__(self, work: Work, device: torch.device, rule: optax.GradientTransformation):
        if work.clip:
            rule = optax.chain(optax.clip_by_global_norm(MAX_NORM), rule)
        made = work.params(device)
        self.params = [jax.numpy.array(param.detach().numpy()) for param in made]
        self.grads = [jax.numpy.array(param.grad) for param in made]
        self.state = rule.init(self.params)

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.step = step

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


def side(work: Work, device: torch.device, rule: optax.GradientTransformation) -> Side:
    steps = Steps(work, device, rule)
    return Side("optax, jitted", steps.sample, steps.result, steps.state_bytes)
