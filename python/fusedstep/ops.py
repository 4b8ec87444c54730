"""Arguments of the ops in their order, and what torch.compile needs to know of each op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from fusedstep import _C

Fake = TypeVar("Fake", bound=Callable[..., Any])

BLOCK = 128  # kBlock of kernels/optim/quantize.h: elements that share a scale


def blocks_of(size: int) -> int:
    """How many scales the codes of `size` elements have."""
    return (size + BLOCK - 1) // BLOCK


@cache
def rule_fields(rule: str) -> tuple[str, ...]:
    """The names of the values that a parameter group of a rule has, in the ops' order."""
    return tuple(_C.rule_fields(rule))


def in_order(rule: str, groups: Sequence[Mapping[str, float]]) -> list[float]:
    """The values of parameter groups, given by name, as the ops take them: group after group."""
    fields = rule_fields(rule)
    for values in groups:
        if len(values) != len(fields):
            wrong = sorted(values.keys() ^ set(fields))
            raise TypeError(f"rule {rule} has the fields {fields}: {wrong} are missing or unknown")
    return [values[name] for values in groups for name in fields]


def register_fake(name: str) -> Callable[[Fake], Fake]:
    """Decorates what stands in for the op `name`: torch.library.register_fake, with types."""
    decorator: Callable[[Fake], Fake] = torch.library.register_fake(f"fusedstep::{name}")
    return decorator


# The ops that only write: nothing to compute, nothing returned.
_WRITERS = (
    "clip_by_norm_",
    "step_",
    "table_assign",
    "table_norm_",
    "table_step_",
)


@register_fake("total_norm")
def _(tensors: list[Tensor], norm_type: float = 2.0, grad_scale: Tensor | None = None) -> Tensor:
    return torch.empty((), dtype=torch.float64, device=tensors[0].device)


@register_fake("encode_state")
def _(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    codes = x.new_empty_strided(x.shape, x.stride(), dtype=torch.int8 if signed else torch.uint8)
    return codes, x.new_empty(blocks_of(x.numel()))


@register_fake("decode_state")
def _(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.new_empty_strided(codes.shape, codes.stride(), dtype=torch.float32)


def _writes(*arguments: Any, **options: Any) -> None:
    return None


@register_fake("table_refresh")
def _(table: int, grads: list[Tensor], missing: list[int]) -> bool:
    return True


for _name in _WRITERS:
    register_fake(_name)(_writes)
