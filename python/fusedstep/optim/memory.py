"""How tensors lie in memory: strides, gaps, copies without gaps, and overlap.

Writing to two tensors that share memory would be a race, so overlap is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusedstep.checks import refuse


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


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first byte that the elements can occupy, and one past the last."""
    last = sum((n - 1) * abs(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _addresses(tensor: Tensor) -> Tensor:
    """The address of every element."""
    address = torch.zeros((), dtype=torch.int64)
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        address = address.unsqueeze(-1) + torch.arange(n) * (stride * tensor.element_size())
    return address.flatten() + tensor.data_ptr()


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements share memory, as in an expanded tensor."""
    if tensor.numel() < 2 or is_dense(tensor):
        return False
    return bool((_addresses(tensor).sort().values.diff() == 0).any())


def find_overlap(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Indices (i, j), i < j, of two tensors of one device that share an element, or None.

    Sorting by address makes this linear, except for tensors whose spans interleave, such as two
    column blocks of one matrix; these are compared element by element.
    """
    spans = sorted((*_span(t), i) for i, t in enumerate(tensors) if t.numel() > 0)
    open_spans: list[tuple[int, int]] = []  # (end, index) of spans that reach past this one
    for begin, end, i in spans:
        open_spans = [(e, j) for e, j in open_spans if e > begin]
        for _, j in open_spans:
            a, b = tensors[i], tensors[j]
            both_dense = is_dense(a) and is_dense(b)
            if both_dense or torch.isin(_addresses(a), _addresses(b)).any():
                return (min(i, j), max(i, j))
        open_spans.append((end, i))
    return None


def refuse_overlap(function: str, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Raises ValueError if tensors of one device, or elements of one tensor, share memory."""
    for name, tensor in zip(names, tensors, strict=True):
        if overlaps_itself(tensor):
            refuse(function, name, "not overlap itself", f"strides {tensor.stride()}")
    pair = find_overlap(tensors)
    if pair is not None:
        refuse(function, names[pair[1]], f"not overlap {names[pair[0]]}", "shared memory")
