"""get_total_norm and clip_grad_norm_, with the names and the meaning of torch.nn.utils."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fusedstep import _C
from fusedstep.build import require_cuda
from fusedstep.checks import NORM_TYPES, refuse, require_dense, require_number, require_order
from fusedstep.fakes import has_values, register_writers, runs_at_once
from fusedstep.optim.distributed import (
    Place,
    is_dtensor,
    local,
    place_of,
    require_apart,
    require_groups,
    require_mesh_of,
    require_on_mesh,
    require_placed,
    settled,
    shard_like,
)
from fusedstep.optim.memory import by_device, gapless, refuse_overlap
from fusedstep.optim.norm import norm_of, norm_over_ranks

register_writers("clip_by_norm_", "clip_list_")

_CLIP_LIST = torch.ops.fusedstep.clip_list_.default

Shards = dict[Place, list[Tensor]]  # the local parts of the tensors of each place


def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    groups: Sequence[ProcessGroup] = (),
) -> Tensor:
    """Returns the norm of all elements of all tensors, like torch.nn.utils.get_total_norm.

    Args:
        tensors: A tensor or an iterable of tensors: float32, float64, bfloat16 or float16, of any
            shape and on any devices. DTensors may be on several meshes, and plain tensors beside
            them; what is not sharded is the same on every rank and counts once. Every rank of these
            meshes must make the call.
        norm_type: Order of the norm, any number or "inf", with torch's meaning: the norm of the
            tensors' norms. So order 0, which DTensors cannot have, is the number of tensors that
            are not all zero, and -inf the smallest magnitude. Tensors without elements have no
            norm of an order below 0.
        error_if_nonfinite: Raise RuntimeError if the norm is NaN or infinite. This waits for the
            device.
        foreach: Accepted for compatibility with torch, without effect.
        groups: Process groups whose ranks have other tensors; the norm is then that of all of them,
            as with `norm_groups` of `fusedstep.optim.Options`. All ranks of a group must make the
            call, also those that have no tensors.

    Returns:
        A 0-d float32 tensor on the first tensor's device, for tensors of any dtype. For order 2, 1
        or inf it has the same bits for any number of threads and on any device;
        kernels/optim/norm.h defines the order of summation. Other orders are computed by torch in
        float64: the result is exact to a few units of the last place of float32, and is infinite
        if a power exceeds float64. For DTensors it is the norm of the whole tensors: a plain tensor
        with the same bits on every rank. For an empty list it is 0 on the CPU, or with `groups` the
        norm of what the other ranks have, on the device where the last group communicates: the CPU,
        or the GPU if the group has a backend for GPUs other than gloo.

    Raises:
        ValueError, TypeError: `get_total_norm: tensors[i] must <property>, got <value>`.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is True.

    Example:
        >>> fusedstep.get_total_norm([torch.tensor([3.0]), torch.tensor([4.0])])
        tensor(5.)
    """
    function = "get_total_norm"
    if groups != ():
        groups = require_groups(function, "groups", groups)
    listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    norm_type = require_order(function, norm_type)
    plain = _C.PlainList.of(listed) if _may_go_unboxed(norm_type) and not groups else None
    if plain is None:
        norm = _norm_of_each(function, listed, norm_type, groups).to(torch.float32)
    else:
        norm = _clip_list(plain, norm_type)
    _check(function, norm, norm_type, error_if_nonfinite)
    return norm


def _norm_of_each(
    function: str, tensors: list[Tensor], norm_type: float, groups: Sequence[ProcessGroup]
) -> Tensor:
    """The norm of any tensors, 0-d float64: each is checked, gathered and copied as it needs."""
    names = [f"tensors[{i}]" for i in range(len(tensors))]
    for name, tensor in zip(names, tensors, strict=True):
        require_dense(function, name, local(tensor))
        require_on_mesh(function, name, tensor)
    require_apart(function, "groups", groups, names, tensors)
    _require_elements(function, norm_type, names, tensors)
    shards: Shards = {}
    for tensor in map(settled, tensors):
        shards.setdefault(place_of(tensor), []).append(gapless(local(tensor).detach()))
    return _norm(function, shards, norm_type, groups)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    groups: Sequence[ProcessGroup] = (),
) -> Tensor:
    """Scales gradients in place to a global norm of at most `max_norm`, like torch.nn.utils.

    An optimizer with `max_norm` clips inside `step()`, which saves one pass over the gradients.

    Args:
        parameters: A tensor or an iterable of tensors. Their gradients, which are those in `.grad`
            even if an optimizer has another `grad_attribute`, are clipped together; those without
            one are skipped. They may be DTensors, and plain tensors beside them, as in
            `get_total_norm`, but not sparse. A list of gradients, none of which is a parameter or
            has a gradient itself, is refused.
        max_norm: Largest norm, in units of the gradient, 0 or more. The factor is
            `min(1, max_norm / (norm + 1e-6))`. Where it is 1, gradients without gaps in memory are
            not written at all.
        norm_type: Order of the norm, as in `get_total_norm`.
        error_if_nonfinite: Raise RuntimeError, with no gradient changed, if the norm is NaN or
            infinite. This waits for the device.
        foreach: Accepted for compatibility with torch, without effect.
        groups: Process groups whose ranks have other parameters, as in `get_total_norm`. All ranks
            of a group must make the call, also those that have no gradients.

    Returns:
        The norm before clipping, a 0-d float32 tensor on the first gradient's device; it is float32
        for float64 gradients as well. Without gradients, it is where that of `get_total_norm` is.

    Raises:
        ValueError, TypeError: `clip_grad_norm_: <argument>[i] must <property>, got <value>`, with
            no gradient changed.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is True.

    Example:
        >>> loss.backward()
        >>> norm = fusedstep.clip_grad_norm_(model.parameters(), max_norm=1.0)
    """
    if torch.compiler.is_dynamo_compiling():
        return _clip_outside_graph(
            parameters, max_norm, norm_type, error_if_nonfinite, groups=groups
        )
    function = "clip_grad_norm_"
    if groups != ():  # before the gradients, which some ranks may lack
        groups = require_groups(function, "groups", groups)
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    max_norm = require_number(function, "max_norm", max_norm)
    norm_type = require_order(function, norm_type)
    unboxed = _may_go_unboxed(norm_type) and not groups
    plain = _C.PlainList.of_gradients(listed) if unboxed else None
    if plain is None:
        return _clip_each(function, listed, max_norm, norm_type, error_if_nonfinite, groups)
    norm = _clip_list(plain, norm_type, max_norm, error_if_nonfinite)
    _check(function, norm, norm_type, error_if_nonfinite)
    torch.autograd.graph.increment_version(plain.tensors)
    return norm


def _clip_each(
    function: str,
    parameters: list[Tensor],
    max_norm: float,
    norm_type: float,
    error_if_nonfinite: bool,
    groups: Sequence[ProcessGroup],
) -> Tensor:
    """Clips any gradients: each is checked, gathered and copied as it needs."""
    names, owners, grads = _gradients(function, parameters)
    labels = [f"parameters[{i}]" for i in range(len(parameters))]
    require_apart(function, "groups", groups, labels, parameters)
    _require_elements(function, norm_type, names, grads)
    pieces = [local(grad).detach() for grad in grads]
    refuse_overlap(function, names, pieces)
    dense = [gapless(piece) for piece in pieces]
    # Ranks may differ in which parameters have gradients, but not in how often they communicate.
    shards: Shards = {place_of(p): [] for p in parameters if is_dtensor(p)}
    for owner, grad, copy in zip(owners, grads, dense, strict=True):
        place = place_of(owner if is_dtensor(owner) else grad)
        shard = shard_like(owner, grad)
        same = shard is local(grad)
        shards.setdefault(place, []).append(copy if same else gapless(shard.detach()))
    norm = _norm(function, shards, norm_type, groups)
    published = norm.to(torch.float32)
    _check(function, published, norm_type, error_if_nonfinite)
    for device, members in by_device(dense).items():
        torch.ops.fusedstep.clip_by_norm_(members, norm.to(device), max_norm)
    for piece, copy in zip(pieces, dense, strict=True):
        if copy is not piece:
            piece.copy_(copy)
    torch.autograd.graph.increment_version(grads)
    return published


@torch._disable_dynamo
def _clip_outside_graph(*args: Any, **kwargs: Any) -> Tensor:
    """Breaks the graph of a compiled function: addresses are compared in eager mode."""
    return clip_grad_norm_(*args, **kwargs)


def _may_go_unboxed(norm_type: float) -> bool:
    """Whether an op may be given addresses: the kernels know the norm, and nothing records ops."""
    return norm_type in NORM_TYPES and runs_at_once()


def _clip_list(
    plain: _C.PlainList, norm_type: float, max_norm: float = -1.0, skip_nonfinite: bool = False
) -> Tensor:
    """Clips in place in one op, or computes the norm alone where `max_norm` is below 0.

    Returns the norm, 0-d float32. `skip_nonfinite`: there is no clip by a norm that is not finite.
    """
    device = plain.tensors[0].device
    require_cuda(device)
    norm = torch.empty((), dtype=torch.float64, device=device)
    published = torch.empty((), dtype=torch.float32, device=device)
    _CLIP_LIST(plain.address, norm, published, norm_type, max_norm, skip_nonfinite)
    return published


def _gradients(
    function: str, parameters: list[Tensor]
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """The gradients, checked: their names, the parameters that have them, and themselves."""
    names: list[str] = []
    owners: list[Tensor] = []
    grads: list[Tensor] = []
    for i, parameter in enumerate(parameters):
        if not isinstance(parameter, Tensor):
            refuse(function, f"parameters[{i}]", "be a tensor", type(parameter).__name__, TypeError)
        if parameter.grad is not None:
            names.append(f"parameters[{i}].grad")
            owners.append(parameter)
            grads.append(parameter.grad)
            require_dense(function, names[-1], local(grads[-1]))
            require_mesh_of(function, names[-1], parameter, grads[-1])
            if torch._is_zerotensor(local(grads[-1])):
                refuse(function, names[-1], "hold its values in memory", "a lazy zero")
        require_placed(function, f"parameters[{i}]", parameter)
    if parameters and not grads and not any(map(_is_parameter, parameters)):
        must = "be parameters with their gradients (get_total_norm takes gradients themselves)"
        got = "tensors that are no parameters and have no gradients"
        refuse(function, "parameters", must, got)
    return names, owners, grads


def _is_parameter(tensor: Tensor) -> bool:
    return tensor.requires_grad or isinstance(tensor, nn.Parameter)


def _require_elements(
    function: str, norm_type: float, names: list[str], tensors: list[Tensor]
) -> None:
    """Refuses tensors without elements where these have no norm, as torch does."""
    for name, tensor in zip(names, tensors, strict=True):
        if norm_type < 0 and tensor.numel() == 0:
            must = f"have elements where norm_type is {norm_type}"
            refuse(function, name, must, f"shape {tuple(tensor.shape)}")


def _norm(
    function: str, shards: Shards, norm_type: float, groups: Sequence[ProcessGroup]
) -> Tensor:
    """The norm of all elements on all ranks, 0-d float64, where `norm_over_ranks` returns it."""
    if not shards and not groups:  # of any order
        return torch.zeros((), dtype=torch.float64, device="cpu")
    if norm_type == 0 and any(place.mesh is not None for place in shards):
        refuse(function, "norm_type", "not be 0 for DTensors", norm_type)
    norms = {p: norm_of(tensors, norm_type, p.device) for p, tensors in shards.items()}
    return norm_over_ranks(norms, norm_type or 1.0, groups)  # of order 0 are counts, which add up


def _check(function: str, norm: Tensor, norm_type: float, error_if_nonfinite: bool) -> None:
    """Raises RuntimeError if the norm, as it is returned, must be finite and is not."""
    if not error_if_nonfinite:
        return
    if not has_values(norm):
        refuse(function, "error_if_nonfinite", "be False for tensors without values", True)
    if not math.isfinite(float(norm)):
        raise RuntimeError(
            f"{function}: the gradients' norm of order {norm_type} must be finite where "
            f"error_if_nonfinite=True, got {float(norm)}; nothing was changed"
        )
