"""How tensors lie in memory: devices, strides, gaps, copies without gaps, and overlap.

Writing to two tensors that share memory would be a race, so overlap is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.fakes import register_fake


class _OnDevice(Protocol):
    @property
    def device(self) -> torch.device: ...


T = TypeVar("T", bound=_OnDevice)


def by_device(items: Iterable[T]) -> dict[torch.device, list[T]]:
    """Tensors, or what else is on a device, by device and in their order."""
    members: dict[torch.device, list[T]] = {}
    for item in items:
        members.setdefault(item.device, []).append(item)
    return members


def memory_layout(tensor: Tensor) -> tuple[int, ...]:
    """The strides torch.empty_like gives: those of `tensor` itself if it has no gaps."""
    if tensor.is_contiguous():
        return tensor.stride()
    return torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride()


def same_strides(a: Tensor, strides: Sequence[int]) -> bool:
    """Whether the strides of `a` are these, where they matter: dimensions of one element do not."""
    if a.numel() == 0:
        return True
    return all(x == y for n, x, y in zip(a.shape, a.stride(), strides, strict=True) if n != 1)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill memory without gap or overlap, in any order of dimensions."""
    return tensor.is_contiguous() or same_strides(tensor, memory_layout(tensor))


def is_plain(tensor: Tensor, strides: Sequence[int]) -> bool:
    """Whether memory holds the elements themselves with these strides, no lazy negation or zero."""
    return (
        same_strides(tensor, strides) and not tensor.is_neg() and not torch._is_zerotensor(tensor)
    )


def in_layout_of(param: Tensor, tensor: Tensor) -> Tensor:
    """A copy of `tensor` whose elements lie in memory in the order of those of `param`."""
    return torch.empty_strided(
        tensor.shape, memory_layout(param), dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)


def gapless(tensor: Tensor) -> Tensor:
    """`tensor` itself if its elements fill its memory as they are, else a copy that does."""
    if is_dense(tensor) and is_plain(tensor, tensor.stride()):
        return tensor
    return in_layout_of(tensor, tensor)


@register_fake("find_overlap")
def _(tensors: list[Tensor]) -> tuple[int, int]:
    return -1, -1  # fake tensors have no memory


def refuse_overlap(function: str, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Raises ValueError if tensors, or elements of one tensor, share memory.

    `names` is read only if something is refused.
    """
    i, j = torch.ops.fusedstep.find_overlap(tensors)
    if i >= 0 and i == j:
        refuse(function, names[i], "not overlap itself", f"strides {tensors[i].stride()}")
    if i >= 0:
        refuse(function, names[j], f"not overlap {names[i]}", "shared memory")
