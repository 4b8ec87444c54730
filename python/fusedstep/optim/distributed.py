"""What other ranks have of tensors: DTensors and their local shards, meshes, process groups."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fusedstep.checks import refuse

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


def placed_like(
    param: Tensor,
    shard: Tensor,
    shape: Sequence[int] | None = None,
    placements: Sequence[Any] | None = None,
) -> Tensor:
    """`shard` as a DTensor placed like `param`, so that checkpoints know which part it is.

    `shape` of the whole and `placements`: where they are not the parameter's.
    """
    if not is_dtensor(param):
        return shard
    from torch.distributed.tensor import DTensor

    whole = param if shape is None else torch.empty(shape, device="meta")
    return DTensor.from_local(
        shard, param.device_mesh, placements or param.placements, run_check=False,
        shape=whole.shape, stride=whole.stride(),
    )  # fmt: skip


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


def dividing_optimizer() -> Any:
    """The ZeroRedundancyOptimizer that is calling, which passes on some of its parameters, or None.

    It leaves no other mark on the optimizer that it constructs, or on the parameters.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe() if module is not None else None
    while module is not None and frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, module.ZeroRedundancyOptimizer):
            return caller
        frame = frame.f_back
    return None


def require_group_of(function: str, dividing: Any, groups: Sequence[ProcessGroup]) -> None:
    """`norm_groups` with the group between whose ranks parameters are divided, where it may be.

    A ZeroRedundancyOptimizer puts its arguments into parameter groups, which it saves.
    """
    if "norm_groups" in dividing.defaults:
        must = f"be bound to the class, functools.partial({function}, norm_groups=[its group])"
        refuse(function, "norm_groups", must, "an argument of a ZeroRedundancyOptimizer")
    if groups and dividing.process_group not in groups:
        must = "contain the ZeroRedundancyOptimizer's process group"
        refuse(function, "norm_groups", must, f"{len(groups)} others")


# --- process groups -------------------------------------------------------------------------------


def device_type_of(group: ProcessGroup) -> str:
    """Where a group communicates, whatever tensors this rank has: all ranks must decide alike.

    On GPUs if it has a backend of their own, such as NCCL: a CPU would have to wait for them.
    """
    config = torch.distributed.get_backend_config(group)  # "cpu:gloo,cuda:nccl"
    backends = dict(backend.split(":") for backend in config.split(","))
    return "cuda" if backends.get("cuda") not in (None, backends.get("cpu")) else "cpu"


def require_groups(
    function: str, argument: str, groups: Iterable[ProcessGroup]
) -> tuple[ProcessGroup, ...]:
    """Groups with this process, of which no two have another process in common."""
    if not isinstance(groups, Iterable):
        refuse(
            function, argument, "be a sequence of process groups", type(groups).__name__, TypeError
        )
    listed = tuple(groups)
    ranks = [_ranks_of(function, f"{argument}[{i}]", group) for i, group in enumerate(listed)]
    for i, j in combinations(range(len(listed)), 2):
        if listed[i] is listed[j] or len(ranks[i] & ranks[j]) > 1:
            must = f"share no other process with {argument}[{i}]: it would count twice"
            refuse(function, f"{argument}[{j}]", must, f"ranks {sorted(ranks[j])}")
    return listed


def require_apart(
    function: str,
    argument: str,
    groups: Sequence[ProcessGroup],
    names: Sequence[str],
    tensors: Sequence[Tensor],
) -> None:
    """Groups that have no other process in common with the mesh of a DTensor."""
    meshes: dict[Any, str] = {}
    for name, tensor in zip(names, tensors, strict=True) if groups else ():
        if is_dtensor(tensor):
            meshes.setdefault(tensor.device_mesh, name)
    for mesh, name in meshes.items():
        on_mesh = set(mesh.mesh.flatten().tolist())
        for i, group in enumerate(groups):
            ranks = _ranks_of(function, f"{argument}[{i}]", group)
            if len(ranks & on_mesh) > 1:
                must = f"share no other process with the mesh of {name}: it would count twice"
                refuse(function, f"{argument}[{i}]", must, f"ranks {sorted(ranks)}")


def _ranks_of(function: str, argument: str, group: Any) -> set[int]:
    """The ranks of a group with this process."""
    module = torch.distributed
    must = "be a process group that this process is part of"
    if module.is_available() and group == module.GroupMember.NON_GROUP_MEMBER:
        refuse(function, argument, must, "new_group's result in other processes")
    if not isinstance(group, ProcessGroup):
        refuse(function, argument, "be a process group", type(group).__name__, TypeError)
    try:
        return set(module.get_process_group_ranks(group))
    except KeyError:  # it was destroyed
        refuse(function, argument, must, "a group that torch.distributed does not list")
