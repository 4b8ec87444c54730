"""Checks of pinv's and lstsq's arguments, and the two tolerances as in torch.linalg.pinv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_dense, require_number
from fusedstep.linalg.drivers import HERMITIAN_NAMES, NAMES
from fusedstep.linalg.numerics import Tolerance

broadcast_shapes: Callable[..., torch.Size] = torch.broadcast_shapes  # torch's has no types


def require_matrices(function: str, argument: str, tensor: Any) -> None:
    """A plain dense floating-point tensor of two or more dimensions on a CPU or a CUDA device."""
    require_dense(function, argument, tensor)
    if tensor.dim() < 2:
        refuse(function, argument, "have two or more dimensions", tuple(tensor.shape))


def require_driver(function: str, driver: Any, hermitian: bool) -> None:
    """A known driver, one for symmetric matrices if `hermitian`."""
    known = HERMITIAN_NAMES if hermitian else NAMES
    if driver not in known:
        where = " where hermitian=True" if hermitian else ""
        refuse(function, "driver", f"be one of {', '.join(known)}{where}", repr(driver))


def tolerances(function: str, A: Tensor, atol: Any, rtol: Any) -> Tolerance:
    """`atol` and `rtol` as float64 tensors on A's device, with torch's defaults.

    atol: 0. rtol: 0 if `atol` is positive, else eps * max(m, n), with float64's eps for float64 and
    float32's for all other dtypes: 128 times bfloat16's own is already 1.
    """
    atol = _tolerance(function, "atol", 0.0 if atol is None else atol, A)
    if rtol is None:
        wide = torch.float64 if A.dtype == torch.float64 else torch.float32
        default = torch.full_like(atol, torch.finfo(wide).eps * max(A.shape[-2:]))
        return Tolerance(atol, default.masked_fill(atol > 0, 0.0))
    return Tolerance(atol, _tolerance(function, "rtol", rtol, A))


def _tolerance(function: str, argument: str, value: Any, A: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        number = require_number(function, argument, value)
        return torch.full((), number, dtype=torch.float64, device=A.device)
    if value.is_complex():
        refuse(function, argument, "be real", value.dtype, TypeError)
    if value.device != A.device and value.dim() > 0:
        refuse(function, argument, f"be on A's device {A.device}", value.device)
    try:
        broadcast_shapes(value.shape, A.shape[:-2])
    except RuntimeError:
        batch = tuple(A.shape[:-2])
        refuse(function, argument, f"broadcast with the batch {batch}", tuple(value.shape))
    return value.detach().to(A.device, torch.float64)
