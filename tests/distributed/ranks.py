"""What the checks that run in several processes share: their list, and agreement between ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among the others, and a folder that all of them, and later runs, see."""

    rank: int
    world: int
    folder: Path


Check = Callable[[Ranks], None]
CHECKS: dict[int, dict[str, Check]] = {}  # by number of processes, in the order they run


def check(*worlds: int) -> Callable[[Check], Check]:
    """Registers a function to be run by all of `world` processes, for each of these numbers.

    2 is the cheapest. 3 and 4 are for what depends on how many ranks there are: uneven shards, sums
    over ranks, what one rank alone finds, checkpoints that another number of ranks loads.
    """

    def register(function: Check) -> Check:
        for world in worlds:
            CHECKS.setdefault(world, {})[function.__name__] = function
        return function

    return register


def of_all_ranks(value: object) -> list[object]:
    """The values that the ranks called this with, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def assert_same_on_all_ranks(tensor: Tensor, what: str) -> None:
    """Dtype, shape and every bit."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    values = of_all_ranks((str(tensor.dtype), tuple(tensor.shape), bytes(raw.tolist())))
    assert all(value == values[0] for value in values), f"{what} differs between ranks: {tensor}"
