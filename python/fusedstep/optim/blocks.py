"""Blocks of 8-bit codes: where in a parameter they lie, and which part of them a rank has.

A block is 128 neighbouring elements in memory, with one scale. Where rows consist of whole blocks,
the scales lie in rows as well: a part of the rows, on whatever ranks, takes its scales along.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse
from fusedstep.optim.distributed import is_dtensor, local

SIZE: int = _C.BLOCK


def blocks_of(size: int) -> int:
    """How many scales the codes of `size` elements have."""
    return (size + SIZE - 1) // SIZE


def rows_of(shape: Sequence[int]) -> int:
    """How many leading dimensions count rows of whole blocks; 0 if no rows are.

    It is the most that there are: of a matrix 1, if its second dimension is a multiple of 128.
    """
    size = 1
    for dim in range(len(shape) - 1, 0, -1):
        size *= shape[dim]
        if size % SIZE == 0:
            return dim
    return 0


def has_rows(param: Tensor) -> bool:
    """Whether a parameter consists of rows of whole blocks, one behind the other in memory."""
    return param.is_contiguous() and rows_of(param.shape) > 0


def scales_in_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the scales of codes of this shape, which has rows of whole blocks."""
    rows = rows_of(shape)
    return (*shape[:rows], prod(shape[rows:]) // SIZE)


def scales_shape(param: Tensor) -> tuple[int, ...]:
    """The shape of the scales of a parameter's codes: in rows, or counted through its memory."""
    return scales_in_rows(param.shape) if has_rows(param) else (blocks_of(param.numel()),)


def has_codes(param: Tensor) -> bool:
    """Whether `state_dtype="int8"` gives this parameter codes; float32 state if not.

    A DTensor without rows of whole blocks has none: a block that straddles two shards would need
    both to make its scale. That depends on the whole, its shape and its order in memory, not on how
    it is divided.
    """
    return not is_dtensor(param) or has_rows(param)


def require_whole_blocks(function: str, argument: str, param: Tensor) -> None:
    """Refuses a DTensor with codes whose blocks would not lie whole, one by one, in its shards."""
    if not is_dtensor(param) or not has_rows(param):
        return
    rows, parts, inner = rows_of(param.shape), 1, False
    for ranks, placement in zip(param.device_mesh.shape, param.placements, strict=True):
        dim = getattr(placement, "dim", -1)  # of shards, strided ones included
        parts *= ranks if dim == rows else 1  # of the dimension that a row begins with
        inner = inner or (dim > rows and ranks > 1)
    blocks = scales_in_rows(param.shape)[rows]
    even = param.shape[rows] % parts == 0 and blocks % parts == 0
    if inner or not even:
        must = f"have shards of whole blocks of {SIZE} elements where state_dtype='int8'"
        got = f"{tuple(param.shape)} with {param.placements} on {tuple(param.device_mesh.shape)}"
        refuse(function, argument, must, got)
    shard = local(param)
    if not shard.is_contiguous():  # the only test here that one rank may fail and another pass
        must = "have contiguous shards where state_dtype='int8'"
        refuse(function, argument, must, f"{tuple(shard.shape)} with strides {shard.stride()}")
