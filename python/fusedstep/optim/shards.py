"""Which elements of a DTensor a rank holds, from its placements alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fusedstep import _C
from fusedstep.optim.distributed import is_dtensor, local
from fusedstep.optim.memory import memory_layout


class Run(NamedTuple):
    """Consecutive indices along a dimension that a rank holds."""

    indices: range  # in the whole tensor
    begin: int  # of the first one in the rank's shard


@lru_cache(maxsize=4096)
def runs_of(
    size: int, dim: int, placements: tuple[Any, ...], mesh: tuple[int, ...], place: tuple[int, ...]
) -> tuple[Run, ...]:
    """What a rank holds of a dimension: one run, none of an empty shard, several of a strided one.

    Args:
        size: That of the dimension.
        dim: Its number.
        placements: The DTensor's.
        mesh: The mesh's shape.
        place: The rank's coordinates in it.
    """
    if all(placement.is_replicate() or placement.dim != dim for placement in placements):
        return (Run(range(size), 0),) if size else ()
    with _disable_current_modes():  # these indices have values, under FakeTensorMode as well
        indices = torch.arange(size, device="cpu").view((1,) * dim + (size,))
        for placement, count, i in zip(placements, mesh, place, strict=True):
            if not placement.is_replicate() and placement.dim == dim:
                shards, _ = placement._split_tensor(
                    indices, count, with_padding=False, contiguous=False
                )
                indices = shards[i]
        held = indices.flatten()
        jumps = (held.diff() != 1).nonzero().flatten() + 1
        begins = [0, *jumps.tolist()][: len(held)]
        firsts = held[begins].tolist()
    counts = [end - begin for begin, end in pairwise([*begins, len(held)])]
    return tuple(
        Run(range(first, first + count), begin)
        for first, count, begin in zip(firsts, counts, begins, strict=True)
    )


def held_here(tensor: Tensor, dim: int) -> list[range]:
    """The indices along a dimension of a tensor that this rank holds, in the order of its shard."""
    if not is_dtensor(tensor):
        return [range(tensor.shape[dim])]
    mesh = tensor.device_mesh
    place = tuple(mesh.get_coordinate() or ())
    runs = runs_of(tensor.shape[dim], dim, tensor.placements, tuple(mesh.shape), place)
    return [run.indices for run in runs]


def first_element(tensor: Tensor) -> int:
    """Where the elements that this rank holds begin in the whole tensor, in the order of memory.

    0 if they are not consecutive there, as columns of a matrix.
    """
    if not is_dtensor(tensor):
        return 0
    held = [held_here(tensor, dim) for dim in range(tensor.dim())]
    return first_of(without_memory(tensor), local(tensor), held)


def first_of(whole: Tensor, here: Tensor, held: Sequence[Sequence[range]]) -> int:
    """Where elements begin in the whole that they are a part of, in the order of memory.

    Args:
        whole: A tensor, or a block of one; its shape and strides are read.
        here: The elements that a rank holds of it.
        held: For each dimension of `whole`, the indices of these elements.

    Returns:
        The number of their first one; 0 if they are not consecutive there, or if random numbers
        cannot be counted from there.
    """
    if any(len(runs) != 1 for runs in held):
        return 0
    strides, mine = memory_layout(whole), memory_layout(here)
    if any(n != 1 and a != b for n, a, b in zip(here.shape, mine, strides, strict=True)):
        return 0
    first = sum(run.start * stride for (run,), stride in zip(held, strides, strict=True))
    return first if _C.has_one_key_per_chunk(first, here.numel()) else 0


def without_memory(tensor: Tensor) -> Tensor:
    """A tensor on the meta device with a DTensor's shape and strides."""
    return torch.empty_strided(tensor.shape, tensor.stride(), device="meta")
