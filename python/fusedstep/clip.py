"""The global norm and the stand-alone clip, under torch.nn.utils' names."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_dense, require_norm_type, require_number
from fusedstep.overlap import gapless, refuse_overlap


def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of all elements of all tensors, as torch.nn.utils.get_total_norm.

    Args:
        tensors: float32, float64, bfloat16 or float16, of any shape and on any devices.
        norm_type: 2, 1 or inf.
        error_if_nonfinite: RuntimeError where the norm is NaN or infinite (waits for the device).
        foreach: taken for torch's sake; there is one implementation.

    Returns:
        0-d float32 on the first tensor's device, whatever the tensors' dtypes: the same bits for
        any number of threads and on any device (the order is in kernels/common/norm.h). 0 on the
        CPU for an empty list.

    Raises:
        ValueError, TypeError: `get_total_norm: tensors[i] must <property>, got <value>`.
    """
    function = "get_total_norm"
    listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    norm_type = require_norm_type(function, norm_type)
    for i, tensor in enumerate(listed):
        require_dense(function, f"tensors[{i}]", tensor)
    return _publish(function, _norm(listed, norm_type), norm_type, error_if_nonfinite)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales the gradients in place to a global norm of at most `max_norm`, as torch.nn.utils'.

    Args:
        parameters: tensors whose `.grad`, where there is one, is clipped; all together.
        max_norm: in units of the gradient; the factor is min(1, max_norm / (norm + 1e-6)).
        norm_type, error_if_nonfinite, foreach: as in `get_total_norm`; nothing is scaled where it
            raises.

    Returns:
        The norm before clipping: 0-d float32 on the first gradient's device.

    Raises:
        ValueError, TypeError: `clip_grad_norm_: <argument>[i] must <property>, got <value>`, with
            no gradient changed.
    """
    function = "clip_grad_norm_"
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    max_norm = require_number(function, "max_norm", max_norm)
    norm_type = require_norm_type(function, norm_type)
    names, grads = [], []
    for i, parameter in enumerate(listed):
        if not isinstance(parameter, Tensor):
            refuse(function, f"parameters[{i}]", "be a tensor", type(parameter).__name__, TypeError)
        if parameter.grad is not None:
            names.append(f"parameters[{i}].grad")
            grads.append(parameter.grad.detach())
            require_dense(function, names[-1], grads[-1])
    refuse_overlap(function, names, grads)
    norm = _norm(grads, norm_type)
    published = _publish(function, norm, norm_type, error_if_nonfinite)
    for device, members in _by_device(grads).items():
        dense = [gapless(grad) for grad in members]
        torch.ops.fusedstep.clip_by_norm_(dense, norm.to(device), max_norm)
        for grad, copy in zip(members, dense, strict=True):
            if copy is not grad:
                grad.copy_(copy)
        torch.autograd.graph.increment_version(members)
    return published


def _norm(tensors: list[Tensor], norm_type: float) -> Tensor:
    """0-d float64 on the first tensor's device; over several devices, the norm of their norms."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    tensors = [gapless(t.detach()) for t in tensors]
    groups = _by_device(tensors)
    norms = [torch.ops.fusedstep.total_norm(group, norm_type) for group in groups.values()]
    if len(norms) == 1:
        return norms[0]
    first = tensors[0].device
    return torch.ops.fusedstep.total_norm([norm.to(first) for norm in norms], norm_type)


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
