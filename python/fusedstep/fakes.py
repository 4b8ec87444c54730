"""Fake implementations of ops, and whether anything but their values is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._subclasses.fake_tensor import is_fake
from torch.fx.experimental.proxy_tensor import get_proxy_mode

Fake = TypeVar("Fake", bound=Callable[..., Any])


def register_fake(name: str) -> Callable[[Fake], Fake]:
    """Decorates the fake of the op `name`: torch.library.register_fake, with types."""
    decorator: Callable[[Fake], Fake] = torch.library.register_fake(f"fusedstep::{name}")
    return decorator


def register_writers(*names: str) -> None:
    """Registers ops that only write: nothing to compute, nothing returned."""
    for name in names:
        register_fake(name)(_returns_nothing)


def has_values(tensor: Tensor) -> bool:
    """Whether a value can be read: not of FakeTensorMode's tensors or on the meta device."""
    return not (tensor.is_meta or is_fake(tensor))


def runs_at_once() -> bool:
    """Whether ops are only to be run: nothing compiles or traces them, no mode changes them.

    Then values may decide what runs, and an op may be given the address of what is about to go.
    """
    return not (
        torch.compiler.is_compiling()
        or _get_tracing_state() is not None
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
    )


def refuse_tracer(function: str) -> None:
    """Raises RuntimeError if ops are recorded in a graph, as by make_fx, to be run again later.

    A step reads addresses, at which its tensors then no longer are.
    """
    mode = get_proxy_mode()
    if mode is not None:
        must = "step() must not be traced, since a graph would keep addresses of tensors"
        raise RuntimeError(f"{function}: {must}, got {type(mode).__name__}")


def _returns_nothing(*arguments: Any, **options: Any) -> None:
    return None
