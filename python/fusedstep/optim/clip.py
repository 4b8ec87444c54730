"""get_total_norm and clip_grad_norm_, with the names and the meaning of torch.nn.utils."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_dense, require_norm_type, require_number
from fusedstep.fakes import register_fake, register_writers
from fusedstep.optim.distributed import (
    Place,
    is_dtensor,
    local,
    norm_over_ranks,
    place_of,
    refuse_mixture,
    require_mesh_of,
    require_on_mesh,
    require_placed,
    settled,
    shard_like,
)
from fusedstep.optim.memory import gapless, refuse_overlap

register_writers("clip_by_norm_")


@register_fake("total_norm")
def _(tensors: list[Tensor], norm_type: float = 2.0, grad_scale: Tensor | None = None) -> Tensor:
    return torch.empty((), dtype=torch.float64, device=tensors[0].device)


Shards = dict[Place, list[Tensor]]  # the local parts of the tensors of each place


def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Returns the norm of all elements of all tensors, like torch.nn.utils.get_total_norm.

    Args:
        tensors: A tensor or an iterable of tensors: float32, float64, bfloat16 or float16, of any
            shape and on any devices. DTensors may be on several meshes; every rank of these meshes
            must make the call.
        norm_type: Order of the norm: 2, 1 or inf.
        error_if_nonfinite: Raise RuntimeError if the norm is NaN or infinite. This waits for the
            device.
        foreach: Accepted for compatibility with torch, without effect.

    Returns:
        A 0-d float32 tensor on the first tensor's device, for tensors of any dtype. It has the same
        bits for any number of threads and on any device; kernels/optim/norm.h defines the order of
        summation. For an empty list it is 0 on the CPU. For DTensors it is the norm of the whole
        tensors: a plain tensor with the same bits on every rank.

    Raises:
        ValueError, TypeError: `get_total_norm: tensors[i] must <property>, got <value>`.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is True.

    Example:
        >>> fusedstep.get_total_norm([torch.tensor([3.0]), torch.tensor([4.0])])
        tensor(5.)
    """
    function = "get_total_norm"
    listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    norm_type = require_norm_type(function, norm_type)
    names = [f"tensors[{i}]" for i in range(len(listed))]
    for name, tensor in zip(names, listed, strict=True):
        require_dense(function, name, local(tensor))
        require_on_mesh(function, name, tensor)
    refuse_mixture(function, names, listed)
    shards: Shards = {}
    for tensor in map(settled, listed):
        shards.setdefault(place_of(tensor), []).append(local(tensor))
    return _publish(function, _norm(shards, norm_type), norm_type, error_if_nonfinite)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales gradients in place to a global norm of at most `max_norm`, like torch.nn.utils.

    An optimizer with `max_norm` clips inside `step()`, which saves one pass over the gradients.

    Args:
        parameters: A tensor or an iterable of tensors. Their gradients are clipped together; those
            without one are skipped. They may be DTensors, as in `get_total_norm`.
        max_norm: Largest norm, in units of the gradient, 0 or more. The factor is
            `min(1, max_norm / (norm + 1e-6))`.
        norm_type: Order of the norm: 2, 1 or inf.
        error_if_nonfinite: Raise RuntimeError, with no gradient changed, if the norm is NaN or
            infinite. This waits for the device.
        foreach: Accepted for compatibility with torch, without effect.

    Returns:
        The norm before clipping, a 0-d float32 tensor on the first gradient's device.

    Raises:
        ValueError, TypeError: `clip_grad_norm_: <argument>[i] must <property>, got <value>`, with
            no gradient changed.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is True.

    Example:
        >>> loss.backward()
        >>> norm = fusedstep.clip_grad_norm_(model.parameters(), max_norm=1.0)
    """
    function = "clip_grad_norm_"
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    max_norm = require_number(function, "max_norm", max_norm)
    norm_type = require_norm_type(function, norm_type)
    names, grads, shards = _gradients(function, listed)
    pieces = [local(grad).detach() for grad in grads]
    refuse_overlap(function, names, pieces)
    norm = _norm(shards, norm_type)
    published = _publish(function, norm, norm_type, error_if_nonfinite)
    for device, members in _by_device(pieces).items():
        dense = [gapless(piece) for piece in members]
        torch.ops.fusedstep.clip_by_norm_(dense, norm.to(device), max_norm)
        for piece, copy in zip(members, dense, strict=True):
            if copy is not piece:
                piece.copy_(copy)
    torch.autograd.graph.increment_version(grads)
    return published


def _gradients(function: str, parameters: list[Tensor]) -> tuple[list[str], list[Tensor], Shards]:
    """All gradients, checked, with their names, and their local parts by place."""
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
        require_placed(function, f"parameters[{i}]", parameter)
    refuse_mixture(function, [f"parameters[{i}]" for i in range(len(parameters))], parameters)
    # Ranks may differ in which parameters have gradients, but not in how often they communicate.
    shards: Shards = {place_of(p): [] for p in parameters if is_dtensor(p)}
    for owner, grad in zip(owners, grads, strict=True):
        place = place_of(owner if is_dtensor(owner) else grad)
        shards.setdefault(place, []).append(shard_like(owner, grad))
    return names, grads, shards


def _norm(shards: Shards, norm_type: float) -> Tensor:
    """The norm of all elements on all ranks: 0-d float64 on the first place's device."""
    norms = {
        place: torch.ops.fusedstep.total_norm([gapless(t.detach()) for t in tensors], norm_type)
        if tensors
        else torch.zeros((), dtype=torch.float64, device=place.device)
        for place, tensors in shards.items()
    }
    return norm_over_ranks(norms, norm_type) if norms else torch.zeros((), dtype=torch.float64)


def _publish(function: str, norm: Tensor, norm_type: float, error_if_nonfinite: bool) -> Tensor:
    published = norm.to(torch.float32)
    if error_if_nonfinite and not math.isfinite(float(published)):
        raise RuntimeError(
            f"{function}: the gradients' norm of order {norm_type} must be finite where "
            f"error_if_nonfinite=True, got {float(published)}; nothing was changed"
        )
    return published


def _by_device(tensors: list[Tensor]) -> dict[torch.device, list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return groups
