"""Fake implementations: what torch.compile and FakeTensor need to know about an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

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


def _returns_nothing(*arguments: Any, **options: Any) -> None:
    return None
