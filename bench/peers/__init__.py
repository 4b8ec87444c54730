"""The libraries that the step is timed against, one file each; a library may be absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench.case import Side, Work


@dataclass(frozen=True)
class Peer:
    """A library that people could use instead."""

    name: str  # as `--peers` takes it; the names of its sides begin with it
    packages: tuple[str, ...]  # distributions it needs; their versions are recorded
    # None where it does not do this work; may be several. Each is made when it is asked for.
    sides: Callable[[Work, torch.device], Iterator[Side]]


PEERS: dict[str, Peer] = {}
