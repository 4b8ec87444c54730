"""Which elements of a DTensor a rank holds, from its placements alone."""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fusedstep.optim.distributed import is_dtensor


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
    with _disable_current_modes():  # these indices have values, under FakeTensorMode as well
        indices = torch.arange(size, device="cpu").view((1,) * dim + (size,))
        for placement, count, i in zip(placements, mesh, place, strict=True):
            if not placement.is_replicate() and placement.dim == dim:
                shards, _ = placement._split_tensor(
                    indices, count, with_padding=False, contiguous=False
                )
                indices = shards[i]
        listed = indices.flatten().tolist()
    runs = []
    for _, pairs in groupby(enumerate(listed), lambda pair: pair[1] - pair[0]):
        (begin, first), *others = pairs
        runs.append(Run(range(first, first + 1 + len(others)), begin))
    return tuple(runs)


def held_here(tensor: Tensor, dim: int) -> list[range]:
    """The indices along a dimension of a tensor that this rank holds, in the order of its shard."""
    if not is_dtensor(tensor):
        return [range(tensor.shape[dim])]
    mesh = tensor.device_mesh
    place = tuple(mesh.get_coordinate() or ())
    runs = runs_of(tensor.shape[dim], dim, tensor.placements, tuple(mesh.shape), place)
    return [run.indices for run in runs]
