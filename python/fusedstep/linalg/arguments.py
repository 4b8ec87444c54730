"""Checks of pinv's and lstsq's arguments, and the two tolerances as in torch.linalg.pinv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep.checks import DTYPES, refuse, require_bool, require_dense, require_number
from fusedstep.linalg.drivers import HERMITIAN_NAMES, NAMES
from fusedstep.linalg.numerics import Tolerance
from fusedstep.linalg.transforms import PLAIN

COMPUTED = (torch.float32, torch.float64)  # half precision becomes float32 first
TAKEN = (*DTYPES, torch.complex64, torch.complex128)

# For the default rtol: float32's for half precision too.
EPS = {dtype: torch.finfo(dtype if dtype.itemsize >= 8 else torch.float32).eps for dtype in TAKEN}

broadcast_shapes: Callable[..., torch.Size] = torch.broadcast_shapes  # torch's has no types


def require_matrices(function: str, argument: str, tensor: Any) -> None:
    """A plain dense tensor of two or more dimensions on a CPU or a CUDA device, not of integers."""
    usual = type(tensor) in PLAIN and tensor.dtype in COMPUTED
    if not (usual and tensor.is_cpu and tensor.layout is torch.strided):
        require_dense(function, argument, tensor, TAKEN)
    if tensor.dim() < 2:
        refuse(function, argument, "have two or more dimensions", tuple(tensor.shape))


def require_method(function: str, A: Tensor, hermitian: Any, driver: Any, synchronize: Any) -> None:
    """A known driver, one for symmetric matrices if `hermitian`; for complex A no choice at all."""
    require_bool(function, "hermitian", hermitian)
    require_bool(function, "synchronize", synchronize)
    known = HERMITIAN_NAMES if hermitian else NAMES
    if driver not in known:
        where = " where hermitian=True" if hermitian else ""
        refuse(function, "driver", f"be one of {', '.join(known)}{where}", repr(driver))
    if A.is_complex():
        if driver != "auto":
            refuse(function, "driver", "be auto where A is complex", repr(driver))
        if not synchronize:
            refuse(function, "synchronize", "be True where A is complex", synchronize)


def require_out(function: str, out: Any, A: Tensor, shape: tuple[int, ...]) -> None:
    """A tensor that can take results of A's dtype and this shape, as torch's `out` does."""
    if not isinstance(out, Tensor):
        refuse(function, "out", "be a tensor", type(out).__name__, TypeError)
    if out.device != A.device:
        refuse(function, "out", f"be on A's device {A.device}", out.device)
    if not (out.is_complex() or (out.is_floating_point() and not A.is_complex())):
        refuse(function, "out", f"have a dtype that {A.dtype} casts to", out.dtype, TypeError)
    if out.shape != shape and out.numel() > 0:
        refuse(function, "out", f"be empty or have the shape {shape}", tuple(out.shape))
    if torch.is_grad_enabled() and (A.requires_grad or out.requires_grad):
        refuse(function, "out", "be None where a gradient is required", "a tensor")


class Limits(NamedTuple):
    """The two tolerances: each a number for all matrices, or a float64 tensor on their device."""

    atol: float | Tensor
    rtol: float | Tensor

    @property
    def are_numbers(self) -> bool:
        """Whether they are the same for all matrices, and known on the host."""
        return isinstance(self.atol, float) and isinstance(self.rtol, float)

    def batch(self, A: Tensor) -> torch.Size:
        """The batch of A, broadcast with those of the tolerances."""
        if self.are_numbers:
            return A.shape[:-2]
        return broadcast_shapes(A.shape[:-2], *(t.shape for t in self if isinstance(t, Tensor)))

    def of_each(self, A: Tensor) -> Tolerance:
        """Tensors with one value for each matrix of that batch."""
        batch = self.batch(A)
        return Tolerance(
            *(
                t.to(torch.float64).expand(batch)  # torch.jit.trace has made one of a number
                if isinstance(t, Tensor)
                else torch.full(batch, t, dtype=torch.float64, device=A.device)
                for t in self
            )
        )


def tolerances(function: str, A: Tensor, atol: Any, rtol: Any, rcond: Any = None) -> Limits:
    """`atol` and `rtol` with torch's defaults.

    `rcond` is NumPy's name of rtol. atol: 0. rtol: 0 if `atol` is positive, else eps * max(m, n),
    with float64's eps for double precision and float32's for all other dtypes: 128 times bfloat16's
    own is already 1.
    """
    named = "rtol"
    if rcond is not None:
        if atol is not None or rtol is not None:
            refuse(function, "rcond", "be None where atol or rtol is given", rcond)
        named, rtol = "rcond", rcond
    atol = 0.0 if atol is None else _tolerance(function, "atol", atol, A)
    if rtol is not None:
        return Limits(atol, _tolerance(function, named, rtol, A))
    default = EPS[A.dtype] * max(A.shape[-2:])
    if isinstance(atol, Tensor):
        return Limits(atol, torch.full_like(atol, default).masked_fill(atol > 0, 0.0))
    return Limits(atol, 0.0 if atol > 0 else default)


def _tolerance(function: str, argument: str, value: Any, A: Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        return require_number(function, argument, value)
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
