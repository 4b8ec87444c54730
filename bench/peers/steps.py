"""What the peers share: arguments by torch's names, and a side made of an optimizer and a clip."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, ValuesView
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bench.case import MAX_NORM, Side, Work, side_of
from bench.step_cases import RULES

MOST_COMPILED = 500  # tensors, of one function: each makes code, and more take minutes
Make = Callable[[list[Tensor]], Optimizer]
Clip = Callable[[list[Tensor], float], object]


def arguments(work: Work, *names: str) -> dict[str, Any] | None:
    """The rule's arguments by these names, with torch's defaults; None if it has others too.

    names: all that a library has, for a step that leaves an argument out computes something else.
    """
    if not set(work.arguments) <= set(names):
        return None
    known = inspect.signature(RULES[work.rule].ours).parameters
    return {name: work.arguments.get(name, known[name].default) for name in names}


def grads_of(params: list[Tensor]) -> list[Tensor]:
    """Their gradients, which all of them have."""
    return [param.grad for param in params if param.grad is not None]


def tensors_in(value: object) -> Iterator[Tensor]:
    """Those in nested containers; of a tensor that is made of others, these."""
    if is_traceable_wrapper_subclass(value):
        yield from tensors_in([getattr(value, name) for name in value.__tensor_flatten__()[0]])
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(value.values())
    elif isinstance(value, (list, tuple, ValuesView)):
        for item in value:
            yield from tensors_in(item)


def kept_bytes(kept: object) -> int:
    """Of all tensors in there; those that share their memory count once."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(kept))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


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
