"""What anyone could write: a page of loops that numba compiles, parallel over chunks of tensors.

Two passes over memory as in fusedstep: one for the norm, one that scales gradients on its way and
does not write them back. Runs in a process of its own, for numba has its own threads.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit, prange
from numba.typed import List

from bench.case import MAX_NORM, Side, Work, side_of
from bench.peers.steps import arguments, grads_of

CHUNK = 1 << 16  # elements
Numbers = tuple[float, ...]
loops = partial(njit, parallel=True, fastmath=True, error_model="numpy")


@loops()
def norm_of(chunks: Any, grads: Any) -> float:
    sums = np.zeros(len(chunks))
    for k in prange(len(chunks)):
        tensor, begin, end = chunks[k]
        g, total = grads[tensor], np.float32(0)
        for i in range(begin, end):
            total += g[i] * g[i]
        sums[k] = total
    return math.sqrt(sums.sum())


@loops()
def sgd(chunks, scale, params, grads, buffers, lr, momentum, decay):
    for k in prange(len(chunks)):
        tensor, begin, end = chunks[k]
        p, g, b = params[tensor], grads[tensor], buffers[tensor]
        for i in range(begin, end):
            b[i] = momentum * b[i] + scale * g[i] + decay * p[i]
            p[i] -= lr * b[i]


@loops()
def adamw(chunks, scale, params, grads, averages, squares, lr, keep, weight1, weight2, root, eps):
    for k in prange(len(chunks)):
        tensor, begin, end = chunks[k]
        p, g, m, v = params[tensor], grads[tensor], averages[tensor], squares[tensor]
        for i in range(begin, end):
            gradient = scale * g[i]
            m[i] += weight1 * (gradient - m[i])
            v[i] += weight2 * (gradient * gradient - v[i])
            p[i] = keep * p[i] - lr * m[i] / (root * np.sqrt(v[i]) + eps)


@loops()
def rmsprop(chunks, scale, params, grads, squares, buffers, means, lr, weight, eps, momentum):
    for k in prange(len(chunks)):
        tensor, begin, end = chunks[k]
        p, g, v = params[tensor], grads[tensor], squares[tensor]
        b, a = buffers[tensor], means[tensor]
        for i in range(begin, end):
            gradient = scale * g[i]
            v[i] += weight * (gradient * gradient - v[i])
            a[i] += weight * (gradient - a[i])
            b[i] = momentum * b[i] + gradient / (np.sqrt(v[i] - a[i] * a[i]) + eps)
            p[i] -= lr * b[i]


@loops()
def lion(chunks, scale, params, grads, averages, lr, keep, weight1, weight2):
    for k in prange(len(chunks)):
        tensor, begin, end = chunks[k]
        p, g, m = params[tensor], grads[tensor], averages[tensor]
        for i in range(begin, end):
            change = scale * g[i] - m[i]
            p[i] = keep * p[i] - lr * np.sign(m[i] + weight1 * change)
            m[i] += weight2 * change


# --- the numbers that a loop is given at step t, which counts from 1 ---


def sgd_numbers(t: int, lr: float, momentum: float, weight_decay: float) -> Numbers:
    return lr, momentum, weight_decay


def adamw_numbers(t: int, lr: float, betas: Any, eps: float, weight_decay: float) -> Numbers:
    (beta1, beta2), keep = betas, 1 - lr * weight_decay
    return lr / (1 - beta1**t), keep, 1 - beta1, 1 - beta2, (1 - beta2**t) ** -0.5, eps


def rmsprop_numbers(
    t: int, lr: float, alpha: float, eps: float, momentum: float, centered: bool
) -> Numbers:
    return lr, 1 - alpha, eps, momentum


def lion_numbers(t: int, lr: float, betas: Any, weight_decay: float) -> Numbers:
    return lr, 1 - lr * weight_decay, 1 - betas[0], 1 - betas[1]


class Rule(NamedTuple):
    loop: Callable[..., None]
    numbers: Callable[..., Numbers]
    states: int  # kept for each element


RULES = {
    "sgd": Rule(sgd, sgd_numbers, states=1),
    "adamw": Rule(adamw, adamw_numbers, states=2),
    "rmsprop": Rule(rmsprop, rmsprop_numbers, states=3),
    "lion": Rule(lion, lion_numbers, states=1),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Nothing but float32; SGD with momentum, RMSprop with momentum and centered."""
    if work.rule not in RULES or (work.mode, work.dtype) != ("float32", torch.float32):
        return
    rule = RULES[work.rule]
    _, *names = inspect.signature(rule.numbers).parameters
    options = arguments(work, *names)
    if options and options.get("momentum", 1) and options.get("centered", True):
        yield side(work, device, rule, options)


def side(work: Work, device: torch.device, rule: Rule, options: dict[str, Any]) -> Side:
    params = work.params(device)
    states = [[torch.zeros_like(param) for param in params] for _ in range(rule.states)]
    lists = [flat(tensors) for tensors in (params, grads_of(params), *states)]
    chunks = np.array(
        [
            (tensor, begin, min(begin + CHUNK, param.numel()))
            for tensor, param in enumerate(params)
            for begin in range(0, param.numel(), CHUNK)
        ]
    )
    step = 0

    def call() -> None:
        nonlocal step
        step += 1
        scale = min(1, MAX_NORM / (norm_of(chunks, lists[1]) + 1e-6)) if work.clip else 1
        numbers = map(np.float32, rule.numbers(step, **options))
        rule.loop(chunks, np.float32(scale), *lists, *numbers)

    kept = rule.states * sum(param.nbytes for param in params)
    return side_of("numba, loops", call, device, lambda: params, lambda: kept)


def flat(tensors: list[torch.Tensor]) -> Any:
    """Views of their memory in one dimension, as numba takes a list."""
    return List([tensor.detach().numpy().reshape(-1) for tensor in tensors])
