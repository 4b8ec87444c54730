"""Every refusal of a user's argument, in one wording, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fusedstep import build
from fusedstep.fakes import has_values

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FLAGS = {False: False, True: True}  # whatever equals a key finds it
NORM_TYPES = (2.0, 1.0, math.inf)


def refuse(
    function: str, argument: str, must: str, got: Any, kind: type[Exception] = ValueError
) -> NoReturn:
    """Raises `kind` with the message `<function>: <argument> must <must>, got <got>`."""
    raise kind(f"{function}: {argument} must {must}, got {got}")


def require_number(function: str, argument: str, value: Any, must: str = "be 0 or more") -> float:
    """`value` as a float that is not NaN and not negative; a 1-element tensor counts as its value.

    Reading the value of a tensor on a GPU waits for it; callers do not pass such tensors.
    """
    if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
        refuse(function, argument, "be a number", type(value).__name__, TypeError)
    if isinstance(value, Tensor) and value.numel() != 1:
        refuse(function, argument, "have one element", tuple(value.shape))
    number = float(value)
    if not number >= 0:
        refuse(function, argument, must, number)
    return number


def require_rate(function: str, argument: str, value: Any) -> float:
    """`value` as a finite float that is not negative."""
    rate = require_number(function, argument, value)
    if rate == math.inf:
        refuse(function, argument, "be finite", rate)
    return rate


def require_count(
    function: str, argument: str, value: Any, least: int = 0, below: int | None = None
) -> int:
    """`value` as an int of at least `least` and less than `below`; NumPy's integers count too."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        refuse(function, argument, "be an int", f"{type(value).__name__} {value!r}", TypeError)
    count = int(value)
    if count < least or (below is not None and count >= below):
        end = "" if below is None else f" and below {below}"
        refuse(function, argument, f"be at least {least}{end}", value)
    return count


def require_bool(function: str, argument: str, value: Any) -> bool:
    """`value`, which must be True or False itself: every other object has a truth value too."""
    if not isinstance(value, bool):
        refuse(function, argument, "be True or False", f"{value!r}", TypeError)
    return value


def require_flag(function: str, argument: str, value: Any, must: str = "be True or False") -> bool:
    """`value` of an optimizer's group as a bool; from other programs come NumPy's, 0 and 1 too."""
    try:
        return FLAGS[value]
    except (KeyError, TypeError):  # TypeError: cannot be a key
        refuse(function, argument, must, repr(value), TypeError)


def require_beta(function: str, argument: str, value: Any) -> float:
    """`value` as a float in [0, 1)."""
    beta = require_number(function, argument, value, "be at least 0 and below 1")
    if beta >= 1:
        refuse(function, argument, "be at least 0 and below 1", beta)
    return beta


def require_norm_type(function: str, value: Any) -> float:
    """`value` as 2.0, 1.0 or inf; "inf" counts as inf, as in torch."""
    try:
        norm_type = float(value)
    except (TypeError, ValueError):
        refuse(function, "norm_type", "be 2, 1 or inf", repr(value), TypeError)
    if norm_type not in NORM_TYPES:
        refuse(function, "norm_type", "be 2, 1 or inf", norm_type)
    return norm_type


def require_order(function: str, value: Any) -> float:
    """`value` as a norm's order: any float but NaN; "inf" and "-inf" count, as in torch."""
    try:
        norm_type = float(value)
    except (TypeError, ValueError):
        refuse(function, "norm_type", "be a number", repr(value), TypeError)
    if math.isnan(norm_type):
        refuse(function, "norm_type", "be a number", norm_type)
    return norm_type


def require_values(function: str, argument: str, tensor: Tensor) -> None:
    """A tensor whose values the function may read."""
    if not has_values(tensor):
        refuse(function, argument, "have values", f"a {type(tensor).__name__} on {tensor.device}")


def require_dense(
    function: str,
    argument: str,
    tensor: Any,
    dtypes: Sequence[torch.dtype] = DTYPES,
    *,
    meta: bool = False,
) -> None:
    """A strided tensor of one of the dtypes on a device for which there are kernels.

    `meta`: it may also be on the meta device, and get its memory later.
    """
    if not isinstance(tensor, Tensor):
        refuse(function, argument, "be a tensor", type(tensor).__name__, TypeError)
    if is_traceable_wrapper_subclass(tensor):  # DTensor: its memory is not all local
        refuse(function, argument, "be a plain tensor", type(tensor).__name__, TypeError)
    if tensor.layout != torch.strided:
        refuse(function, argument, "be dense", tensor.layout, TypeError)
    if tensor.dtype not in dtypes:
        *names, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        refuse(function, argument, f"be {', '.join(names)} or {last}", tensor.dtype, TypeError)
    if meta and tensor.is_meta:
        return
    if tensor.device.type not in ("cpu", "cuda"):
        refuse(function, argument, "be on a CPU or a CUDA device", tensor.device)
    build.require_cuda(tensor.device)
