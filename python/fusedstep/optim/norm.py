"""The norm of the tensors of one device, and from such norms that of all devices and ranks.

It may be of any order: 2, 1 and inf by the kernel, others by torch. The others are for the
namesakes of torch.nn.utils; no step needs them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fusedstep.checks import NORM_TYPES
from fusedstep.fakes import register_fake
from fusedstep.optim.distributed import Place, device_type_of

_AT_ONCE = 1 << 20  # elements that torch converts to float64 at a time


@register_fake("total_norm")
def _(tensors: list[Tensor], norm_type: float = 2.0, grad_scale: Tensor | None = None) -> Tensor:
    return torch.empty((), dtype=torch.float64, device=tensors[0].device)


def norm_of(tensors: Sequence[Tensor], norm_type: float, device: torch.device) -> Tensor:
    """The norm of all elements: 0-d float64 on `device`, where the gapless tensors are.

    As in torch, it is the norm of the tensors' norms: for order 0 the number of tensors that are
    not all zero.
    """
    if norm_type in NORM_TYPES and tensors:
        return cast(Tensor, torch.ops.fusedstep.total_norm(tensors, norm_type))
    norms = [_in_parts(tensor, norm_type) for tensor in tensors if tensor.numel() > 0]
    if norms:
        return _vector_norm(torch.stack(norms), norm_type)
    return norm_of_nothing(norm_type, device)


def norm_of_nothing(norm_type: float, device: torch.device) -> Tensor:
    """The norm of no elements, which leaves others as they are: 0, or inf for an order below 0."""
    nothing = math.inf if norm_type < 0 else 0.0
    return torch.full((), nothing, dtype=torch.float64, device=device)


def _in_parts(tensor: Tensor, norm_type: float) -> Tensor:
    parts = tensor.as_strided((tensor.numel(),), (1,)).split(_AT_ONCE)
    return _vector_norm(torch.stack([_vector_norm(part, norm_type) for part in parts]), norm_type)


def _vector_norm(x: Tensor, norm_type: float) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(x, norm_type, dtype=torch.float64))


# --- over all ranks -------------------------------------------------------------------------------


def norm_over_ranks(
    norms: Mapping[Place, Tensor], norm_type: float, groups: Sequence[ProcessGroup] = ()
) -> Tensor:
    """The norm of all elements on all ranks, from the norms of the local elements by place.

    Tensors that are not sharded, plain ones included, are the same on every rank and count once.
    Their norm is one number, the last of every message. Each mesh gathers once along each dimension
    that a tensor is sharded over: one message holds the norms of all its shards and that number.
    Then each group gathers the norm so far; what its ranks have is different, and all of it counts.

    Norms are gathered and combined in rank order instead of reduced, so that the result has the
    same bits on every rank and with every backend. Of replicas the largest counts, or NaN: if they
    are equal, the bits are theirs; if one is not finite, all ranks know. Where nothing is sharded
    and there are no groups, nothing is communicated.

    Args:
        norms: 0-d float64 each, on its place's device. All ranks of a mesh must pass the same
            sharded places of that mesh in the same order, and for places without elements
            `norm_of_nothing`. Other places may be on some ranks only.
        norm_type: Any order but 0.
        groups: Further process groups, in the same order on all ranks.

    Returns:
        0-d float64 on the first place's device, or where the last group communicates if there are
        no places; without waiting for a GPU, unless a CPU needs what is there.
    """
    devices = [place.device for place in norms] or [torch.device("cpu")]
    shards = {place: norm for place, norm in norms.items() if place.sharded}
    replicas = [norm for place, norm in norms.items() if not place.sharded]
    replica = _combined(replicas, norm_type, devices[0])
    meshes: dict[Any, list[Place]] = {}
    for place in shards:
        meshes.setdefault(place.mesh, []).append(place)
    for mesh, places in meshes.items():
        for dim in sorted(set(chain.from_iterable(place.sharded for place in places))):
            message = [*(shards[place] for place in places), replica]
            *columns, replicas_of_ranks = _gather(message, mesh.get_group(dim), mesh.device_type)
            replica = _outermost(replicas_of_ranks, norm_type)
            for place, column in zip(places, columns, strict=True):
                combine = _norm_of_parts if dim in place.sharded else _outermost
                shards[place] = combine(column, norm_type)
    total = _combined([*shards.values(), replica] if shards else [replica], norm_type, devices[0])
    for group in groups:
        (column,) = _gather([total], group, device_type_of(group))
        total = _norm_of_parts(column, norm_type)
    return total.to(devices[0]) if norms else total


def _gather(values: Sequence[Tensor], group: ProcessGroup, device_type: str) -> Tensor:
    """n numbers of every rank of a group -> [n, ranks], in one collective on such a device."""
    here = (value.device for value in values if value.device.type == device_type)
    device = next(here, torch.device(device_type))
    message = torch.stack([value.to(device) for value in values])
    rows = [torch.empty_like(message) for _ in range(group.size())]
    torch.distributed.all_gather(rows, message, group=group)
    return torch.stack(rows, dim=1)


def _combined(norms: Sequence[Tensor], norm_type: float, device: torch.device) -> Tensor:
    """The norm of what has these norms: on `device`, unless it is the only one."""
    if len(norms) == 1:
        return norms[0]
    return norm_of([norm.to(device) for norm in norms], norm_type, device)


def _norm_of_parts(column: Tensor, norm_type: float) -> Tensor:
    return norm_of([column], norm_type, column.device)


def _outermost(column: Tensor, norm_type: float) -> Tensor:
    """The largest, so that a rank that has nothing does not matter; NaN if one is."""
    return column.amin() if norm_type < 0 else column.amax()
