"""A decorator for functions whose products must be neither recorded nor rounded on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def numerical(function: Function) -> Function:
    """Runs it outside of autograd and the caller's autocast; `weight` tells the device."""

    @wraps(function)
    def run(weight: Any, *args: Any, **options: Any) -> Any:
        on_cuda = isinstance(weight, Tensor) and weight.is_cuda
        with torch.no_grad(), torch.autocast("cuda" if on_cuda else "cpu", enabled=False):
            return function(weight, *args, **options)

    return run  # type: ignore[return-value]
