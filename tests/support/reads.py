"""Modes that watch what ops do: who waits for a device, how large results are; and a warm-up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What waits for the device: a value, a shape that depends on values, a status that is looked at.
READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique_dim"}
READS |= {"masked_select", "_linalg_eigh", "_linalg_svd", "linalg_cholesky", "linalg_inv"}
LONG = 1_000_000_000  # cycles: far more than any step takes


class NoReads(TorchDispatchMode):
    """On any device, by the names of the ops; torch.linalg.eigh and svd look at their status."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(t.dtype == torch.bool for t in args[1] if t is not None)
        reads = by_mask or name in READS
        assert not reads, f"{name} reads a result on the host"
        return func(*args, **(kwargs or {}))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """torch raises where it waits for the GPU, which stays busy, so that any wait would show."""
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
        assert not torch.cuda.current_stream().query(), "the host waited for the stream"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def warm_up(step: Callable[[], Any], times: int = 2) -> None:
    """Runs on a side stream, as torch asks for before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            step()
    torch.cuda.current_stream().wait_stream(side)
