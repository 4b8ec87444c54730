"""Runs a function in several gloo processes, with what a launcher tells each of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Imported once, by the server that every rank is forked from.
LIBRARIES = ["lightning.pytorch", "transformers", "accelerate", "torch._dynamo"]
TIMEOUT = timedelta(seconds=60)  # a rank that waits for one that failed gives up after this


def in_processes(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """`function(*arguments)` in each of `world` ranks; raises what one of them raised."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.set_forkserver_preload(LIBRARIES)
        torch.multiprocessing.start_processes(
            _rank, (world, folder, function, arguments), world, start_method="forkserver"
        )


def _rank(
    rank: int, world: int, folder: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in told.items()})
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", OMP_NUM_THREADS="1")
    # The libraries take over a group that exists. A file needs no free port.
    dist.init_process_group(
        "gloo", f"file://{folder}/store", timeout=TIMEOUT, rank=rank, world_size=world
    )
    function(*arguments)
    dist.barrier()
    dist.destroy_process_group()
