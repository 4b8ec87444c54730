"""Fake implementations: what torch.compile and FakeTensor need to know about an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Fake = TypeVar("Fake", bound=Callable[..., Any])


def register_fake(name: str) -> Callable[[Fake], Fake]:
    """Decorates the fake of the op `name`: torch.library.register_fake, with types."""
    decorator: Callable[[Fake], Fake] = torch.library.register_fake(f"fusedstep::{name}")
    return decorator


def register_writers(*names: str) -> None:
    """Registers ops that only write: nothing to compute, nothing returned."""
    for name in names:
        register_fake(name)(_returns_nothing)


def _returns_nothing(*arguments: Any, **options: Any) -> None:
    return None
