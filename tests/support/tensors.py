"""What several test files need: equality of bits, memory order, parameters, threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from hypothesis import settings
from torch import Tensor

LAYOUTS = ("plain", "reversed", "gaps", "misaligned")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BITS = {1: torch.int8, 8: torch.int64, 4: torch.int32, 2: torch.int16}

# The same examples every time, few enough for a suite that is run often.
bounded = settings(max_examples=40, derandomize=True, deadline=None)


def name_of(value: object) -> str | None:
    """Short test ids: float32 for torch.float32."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Shape, dtype and every bit are the same; only NaNs may differ in payload and sign."""
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    a, b = actual.detach().cpu().contiguous(), expected.detach().cpu().contiguous()
    bits = _BITS[a.element_size()]
    differ = (a.view(bits) != b.view(bits)) & ~(a.isnan() & b.isnan())
    if differ.any():
        at = tuple(differ.nonzero()[0].tolist())
        count = int(differ.sum())
        raise AssertionError(f"{what}: {count} differ, first {at}: {a[at]!r} is not {b[at]!r}")


def in_memory_order(tensor: Tensor, order_of: Tensor | None = None) -> np.ndarray:
    """The elements, flat, in the type they are computed in and `order_of`'s order in memory."""
    strides = (tensor if order_of is None else order_of).stride()
    dims = sorted(range(tensor.dim()), key=lambda d: -strides[d])
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().cpu().permute(dims).flatten().to(wide).numpy().copy()


def bits_in_memory_order(tensor: Tensor, order_of: Tensor) -> np.ndarray:
    """The elements, flat, in `order_of`'s order in memory, as they are: uint16 for 16 bits."""
    dims = sorted(range(tensor.dim()), key=lambda d: -order_of.stride()[d])
    flat = tensor.detach().cpu().permute(dims).flatten()
    return (flat.view(torch.uint16) if flat.element_size() == 2 else flat).numpy().copy()


def from_memory_order(array: np.ndarray, like: Tensor) -> Tensor:
    """The inverse: a tensor of `like`'s shape, with `array`'s dtype."""
    dims = sorted(range(like.dim()), key=lambda d: -like.stride()[d])
    permuted = torch.from_numpy(array.copy()).reshape([like.shape[d] for d in dims])
    inverse = [dims.index(d) for d in range(like.dim())]
    return permuted.permute(inverse)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values in memory of another layout."""
    if layout == "reversed":
        dims = tuple(reversed(range(values.dim())))
        return values.permute(dims).contiguous().permute(dims)
    if layout == "gaps":
        return torch.stack([values, values], dim=-1)[..., 1]
    if layout == "misaligned":
        return torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape)
    return values


def make_params(
    *shapes: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> list[Tensor]:
    """Leaves that require a gradient, normally distributed, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(tuple(shape), generator=generator) for shape in shapes]
    return [t.to(device, dtype).requires_grad_() for t in tensors]


def set_grads(
    params: Sequence[Tensor], seed: int = 0, dtype: torch.dtype | None = None, scale: float = 1.0
) -> None:
    """Gives every parameter a random gradient in its own layout, of `dtype` if that is given."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for param in params:
        param.grad_dtype = None  # torch 2.14: any dtype may be assigned
        grad = torch.randn(param.shape, generator=generator) * scale
        param.grad = torch.empty_like(param, dtype=dtype or param.dtype).copy_(grad)


def copies(params: Sequence[Tensor]) -> list[Tensor]:
    """Leaves with the same values, layouts and (as copies) gradients."""
    twins = []
    for param in params:
        twin = torch.empty_like(param).copy_(param.detach()).requires_grad_()
        if param.grad is not None:
            twin.grad_dtype = None
            twin.grad = torch.empty_like(param.grad).copy_(param.grad)
        twins.append(twin)
    return twins


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs with this number of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
