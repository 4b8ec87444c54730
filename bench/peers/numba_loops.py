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

from bench.case import MAX_NORM, Side, Work, grads_of, side_of
from bench.peers.steps import arguments

CHUNK = 1 << 16  # elements
Numbers = tuple[float, ...]
loop = partial(njit, fastmath=True, error_model="numpy")
loops = partial(loop, parallel=True)


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


# --- of each rule, a loop over a chunk, which becomes vector instructions, and one over chunks ---


@loop()
def sgd_chunk(p, g, b, scale, lr, momentum, decay):
    for i in range(len(p)):
        buffer = momentum * b[i] + scale * g[i] + decay * p[i]
        b[i] = buffer
        p[i] -= lr * buffer


@loops()
def sgd(chunks, scale, params, grads, buffers, *numbers):
    for k in prange(len(chunks)):
        t, i, j = chunks[k]
        sgd_chunk(params[t][i:j], grads[t][i:j], buffers[t][i:j], scale, *numbers)


@loop()
def adamw_chunk(p, g, m, v, scale, lr, keep, weight1, weight2, root, eps):
    for i in range(len(p)):
        gradient, average, square = scale * g[i], m[i], v[i]
        average += weight1 * (gradient - average)
        square += weight2 * (gradient * gradient - square)
        m[i], v[i] = average, square
        p[i] = keep * p[i] - lr * average / (root * np.sqrt(square) + eps)


@loops()
def adamw(chunks, scale, params, grads, averages, squares, *numbers):
    for k in prange(len(chunks)):
        t, i, j = chunks[k]
        m, v = averages[t][i:j], squares[t][i:j]
        adamw_chunk(params[t][i:j], grads[t][i:j], m, v, scale, *numbers)


@loop()
def rmsprop_chunk(p, g, v, b, a, scale, lr, weight, eps, momentum):
    for i in range(len(p)):
        gradient, square, mean = scale * g[i], v[i], a[i]
        square += weight * (gradient * gradient - square)
        mean += weight * (gradient - mean)
        buffer = momentum * b[i] + gradient / (np.sqrt(square - mean * mean) + eps)
        v[i], a[i], b[i] = square, mean, buffer
        p[i] -= lr * buffer


@loops()
def rmsprop(chunks, scale, params, grads, squares, buffers, means, *numbers):
    for k in prange(len(chunks)):
        t, i, j = chunks[k]
        v, b, a = squares[t][i:j], buffers[t][i:j], means[t][i:j]
        rmsprop_chunk(params[t][i:j], grads[t][i:j], v, b, a, scale, *numbers)


@loop()
def lion_chunk(p, g, m, scale, lr, keep, weight1, weight2):
    for i in range(len(p)):
        average = m[i]
        change = scale * g[i] - average
        p[i] = keep * p[i] - lr * np.sign(average + weight1 * change)
        m[i] = average + weight2 * change


@loops()
def lion(chunks, scale, params, grads, averages, *numbers):
    for k in prange(len(chunks)):
        t, i, j = chunks[k]
        lion_chunk(params[t][i:j], grads[t][i:j], averages[t][i:j], scale, *numbers)


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
    if work.rule not in RULES or not work.is_float32:
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
