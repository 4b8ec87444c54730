"""DTensors: the local shard of each, and norms over all ranks that hold a part."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.optim.norm import norm_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Place(NamedTuple):
    """Where the elements of a tensor are: a device here and, for a DTensor, ranks of a mesh."""

    device: torch.device
    mesh: Any = None  # the DeviceMesh; None for a plain tensor
    sharded: tuple[int, ...] = ()  # mesh dimensions along which ranks hold different elements


def is_dtensor(tensor: Any) -> TypeGuard[DTensor]:
    """Whether this is a DTensor, such as fully_shard and tensor parallelism create."""
    # The module is slow to import, and until it is imported there are no DTensors.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The plain tensor that holds the local elements; it shares their memory.

    Not `to_local()`, which returns a new view at every call. This is the same object as long as the
    memory is the same, so a table can tell by identity that nothing was replaced.
    """
    if not is_dtensor(tensor):
        return tensor
    shard: Any = tensor._local_tensor
    pending = type(shard) is not Tensor and hasattr(shard, "wait")  # an AsyncCollectiveTensor
    return cast(Tensor, shard.wait() if pending else shard)


def place_of(tensor: Tensor) -> Place:
    """The key under which tensors can share one norm: same device, same mesh, same sharding.

    Uneven and strided shards are shards: each element counts on the rank that holds it.
    """
    if not is_dtensor(tensor):
        return Place(tensor.device)
    sharded = (d for d, placement in enumerate(tensor.placements) if not placement.is_replicate())
    return Place(tensor.device, tensor.device_mesh, tuple(sharded))


def shard_like(param: Tensor, tensor: Tensor) -> Tensor:
    """The part of `tensor`, a gradient, that belongs to the local part of `param`.

    A gradient may be placed differently from its parameter: sequence parallelism leaves sums over
    the ranks pending (Partial). It is then redistributed, as in torch's optimizers; all ranks of
    the mesh must call this.
    """
    if is_dtensor(param) and is_dtensor(tensor) and tensor.placements != param.placements:
        detached = cast("DTensor", tensor.detach())
        return local(detached.redistribute(placements=param.placements))
    return local(tensor)


def settled(tensor: Tensor) -> Tensor:
    """`tensor` with pending sums over the ranks (Partial) computed; itself if there are none."""
    if not is_dtensor(tensor) or not any(p.is_partial() for p in tensor.placements):
        return tensor
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if p.is_partial() else p for p in tensor.placements]
    return cast("DTensor", tensor.detach()).redistribute(placements=placements)


def placed_like(param: Tensor, shard: Tensor) -> Tensor:
    """`shard` as a DTensor placed like `param`, so that checkpoints know which part it is."""
    if not is_dtensor(param):
        return shard
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, param.device_mesh, param.placements, run_check=False,
        shape=param.shape, stride=param.stride(),
    )  # fmt: skip


def norm_over_ranks(norms: Mapping[Place, Tensor], norm_type: float) -> Tensor:
    """The norm of all elements on all ranks, from the norms of the local elements by place.

    Each mesh communicates once along each dimension that a tensor is sharded over, with all its
    norms in one message. Instead of an all-reduce, the norms are gathered and then combined in rank
    order: the result has the same bits on every rank and with every backend, including infinities
    and NaNs. Values replicated along a dimension count once, as on the first rank, so that replicas
    that differ cannot make ranks disagree.

    Args:
        norms: 0-d float64 each, on its place's device. All ranks of a mesh must pass the same
            places of that mesh in the same order, and for places without elements the norm of
            nothing: 0, or inf for an order below 0.
        norm_type: Any order but 0.

    Returns:
        0-d float64 on the first place's device, without waiting for a GPU.
    """
    whole = dict(norms)
    meshes: dict[tuple[Any, torch.device], list[Place]] = {}
    for place in norms:
        if place.sharded:
            meshes.setdefault((place.mesh, place.device), []).append(place)
    for (mesh, _), places in meshes.items():
        for dim in sorted(set(chain.from_iterable(place.sharded for place in places))):
            ranks = _gather(torch.stack([whole[place] for place in places]), mesh, dim)
            for place, column in zip(places, ranks, strict=True):
                is_part = dim in place.sharded
                whole[place] = norm_of([column], norm_type, column.device) if is_part else column[0]
    first, *others = whole.values()
    if not others:
        return first
    return norm_of([first, *(n.to(first.device) for n in others)], norm_type, first.device)


def _gather(values: Tensor, mesh: Any, dim: int) -> Tensor:
    """[n] of every rank along a dimension of `mesh` -> [n, ranks], in one collective."""
    rows = [torch.empty_like(values) for _ in range(mesh.size(dim))]
    torch.distributed.all_gather(rows, values, group=mesh.get_group(dim))
    return torch.stack(rows, dim=1)


# --- checks ---------------------------------------------------------------------------------------


def require_on_mesh(function: str, argument: str, tensor: Tensor) -> None:
    """A plain tensor, or a DTensor on a mesh that this process is part of."""
    if is_dtensor(tensor) and tensor.device_mesh.get_coordinate() is None:
        refuse(function, argument, "be on a mesh that this process is part of", tensor.device_mesh)


def require_placed(function: str, argument: str, tensor: Tensor) -> None:
    """A plain tensor, or a DTensor of which this process holds final values."""
    require_on_mesh(function, argument, tensor)
    if is_dtensor(tensor) and any(placement.is_partial() for placement in tensor.placements):
        refuse(function, argument, "be sharded or replicated", tensor.placements)


def require_mesh_of(function: str, argument: str, param: Tensor, tensor: Tensor) -> None:
    """A DTensor on the parameter's mesh; a plain tensor if the parameter is one."""
    if is_dtensor(param) != is_dtensor(tensor):
        kinds = ("a DTensor", "a plain tensor")
        kind, got = kinds if is_dtensor(param) else reversed(kinds)
        refuse(function, argument, f"be {kind}, as its parameter", got, TypeError)
    if is_dtensor(param) and is_dtensor(tensor) and param.device_mesh != tensor.device_mesh:
        must = f"be on its parameter's mesh {param.device_mesh}"
        refuse(function, argument, must, tensor.device_mesh)


def require_placement_of(function: str, argument: str, param: Tensor, tensor: Tensor) -> None:
    """The same, and with the parameter's placements."""
    require_mesh_of(function, argument, param, tensor)
    if is_dtensor(param) and is_dtensor(tensor) and param.placements != tensor.placements:
        must = f"be placed as its parameter, {param.placements}"
        refuse(function, argument, must, tensor.placements)


def is_flattened(tensor: Tensor) -> bool:
    """Whether this is one rank's slice of a flat parameter of FSDP1.

    It is a plain tensor, and it is unknown which ranks hold the rest.
    """
    return getattr(tensor, "_fsdp_flattened", False)


def is_divided_between_ranks() -> bool:
    """Whether a ZeroRedundancyOptimizer is calling: it gives an optimizer some of the parameters.

    It leaves no other mark on the optimizer that it constructs, or on the parameters.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe() if module is not None else None
    while module is not None and frame is not None:
        if isinstance(frame.f_locals.get("self"), module.ZeroRedundancyOptimizer):
            return True
        frame = frame.f_back
    return False


def refuse_mixture(function: str, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Raises TypeError if some are DTensors and some are not.

    It is unknown whether a plain tensor is the same on every rank and counts once, or differs
    between ranks: the norm would be a guess.
    """
    kinds = [is_dtensor(tensor) for tensor in tensors]
    if any(kinds) and not all(kinds):
        placed, plain = names[kinds.index(True)], names[kinds.index(False)]
        must = f"be a DTensor, as {placed} is (distribute_tensor makes one, Replicate() included)"
        refuse(function, plain, must, "a plain tensor", TypeError)
