"""torch's own: the loop, foreach, fused, the hook for a scale of the gradients, torch.compile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from bench.case import MAX_NORM, Side, Work, grads_of, kept_bytes, side_of
from bench.peers.steps import MOST_COMPILED, Make, lift_recompile_limit, optimizer_side
from bench.step_cases import RULES, ForeachLion


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """State has the dtype of the parameters, or of a float32 copy of them."""
    optimizer = RULES[work.rule].torchs
    if not set(work.arguments) <= set(inspect.signature(optimizer).parameters):
        return
    ways = ways_of(optimizer, device)
    make: Callable[..., Optimizer] = partial(optimizer, **work.arguments)
    if work.mode == "master":
        yield on_a_copy(work, device, partial(make, **ways.get("fused", {})))
    if not work.is_float32:
        return
    for name, options in ways.items():
        yield optimizer_side(f"torch, {name}", work, device, partial(make, **options))
    if "fused" in ways and work.clip:
        yield scaled(work, device, partial(make, fused=True))
    if len(work.shapes) <= MOST_COMPILED:
        yield compiled(work, device, partial(make, **ways.get("foreach", {})))


def ways_of(optimizer: Callable[..., Optimizer], device: torch.device) -> dict[str, dict[str, Any]]:
    """The ways in which a class can step here, as torch calls them, and the option for each."""
    if optimizer is ForeachLion:
        return {"foreach Lion": {}}
    known = inspect.signature(optimizer).parameters
    ways: dict[str, dict[str, Any]] = {"default": {}}
    if "foreach" in known and device.type == "cpu":  # on a GPU it is the default
        ways["foreach"] = {"foreach": True}
    if "fused" in known and (optimizer is not torch.optim.Adagrad or device.type == "cpu"):
        ways["fused"] = {"fused": True}
    return ways


def scaled(work: Work, device: torch.device, make: Make) -> Side:
    """One pass for the norm, then a fused step that divides the gradients on its way.

    The hook is GradScaler's: the step reads `grad_scale` and writes the divided gradients back.
    """
    params = work.params(device)
    optimizer: Any = make(params)

    def call() -> None:
        norm = torch.nn.utils.get_total_norm(grads_of(params))
        optimizer.grad_scale = ((norm + 1e-6) / MAX_NORM).clamp_(min=1)
        optimizer.step()

    kept = partial(kept_bytes, optimizer.state)
    return side_of("torch, fused with grad_scale", call, device, lambda: params, kept)


def compiled(work: Work, device: torch.device, make: Make) -> Side:
    """Clip and step in one compiled function; the first calls compile it, with g++ on a CPU.

    Not with fullgraph=True, which refuses what most of torch's steps do: they break the graph.
    """
    lift_recompile_limit()
    params = work.params(device)
    optimizer = make(params)

    @torch.compile
    def call() -> None:
        if work.clip:
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    kept = partial(kept_bytes, optimizer.state)
    return side_of("torch, compiled", call, device, lambda: params, kept)


def on_a_copy(work: Work, device: torch.device, make: Make) -> Side:
    """The usual loop for bfloat16 parameters: a float32 copy of them and of their gradients."""
    params = work.params(device)
    masters = [param.detach().float() for param in params]
    for master in masters:
        master.grad = torch.empty_like(master)
    optimizer = make(masters)

    def call() -> None:
        torch._foreach_copy_(grads_of(masters), grads_of(params))
        if work.clip:
            torch.nn.utils.clip_grad_norm_(masters, MAX_NORM)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(params, masters)

    def kept() -> int:
        return kept_bytes([masters, grads_of(masters), optimizer.state])

    return side_of("torch, on a float32 copy", call, device, lambda: params, kept)
