"""What the peers share: arguments by torch's names, and a side made of an optimizer and a clip."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bench.case import MAX_NORM, Side, Work, kept_bytes, side_of
from bench.step_cases import RULES

ADAM = ("lr", "betas", "eps", "weight_decay")
MOST_COMPILED = 500  # tensors, of one function: each makes code, and more take minutes
Make = Callable[[list[Tensor]], Optimizer]
Clip = Callable[[list[Tensor], float], object]
# Of a library, by rule: its class, and all arguments that this has, by torch's names.
Classes = Mapping[str, tuple[Callable[..., Optimizer], tuple[str, ...]]]


def arguments(work: Work, *names: str) -> dict[str, Any] | None:
    """The rule's arguments by these names, with torch's defaults; None if it has others too.

    names: all that a library has, for a step that leaves an argument out computes something else.
    """
    if not set(work.arguments) <= set(names):
        return None
    known = inspect.signature(RULES[work.rule].ours).parameters
    return {name: work.arguments.get(name, known[name].default) for name in names}


def made(classes: Classes, work: Work) -> partial[Optimizer] | None:
    """A library's class for the rule with its arguments; None where it has not all of these."""
    if work.rule not in classes:
        return None
    make, names = classes[work.rule]
    options = arguments(work, *names)
    return None if options is None else partial(make, **options)


def optimizer_side(
    provider: str,
    work: Work,
    device: torch.device,
    make: Make,
    clip: Clip = torch.nn.utils.clip_grad_norm_,
) -> Side:
    """The way PyTorch documents: clip, which rewrites the gradients, then the step."""
    params = work.params(device)
    optimizer = make(params)

    def call() -> None:
        if work.clip:
            clip(params, MAX_NORM)
        optimizer.step()

    kept = partial(kept_bytes, optimizer.state)
    return side_of(provider, call, device, lambda: params, kept)


def lift_recompile_limit() -> None:
    """Let torch.compile compile for every case: after 8 it would stop, and run without."""
    config: Any = torch._dynamo.config
    config.recompile_limit = config.accumulated_recompile_limit = 1 << 20
