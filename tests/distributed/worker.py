"""One of several processes: runs the checks for their number, and writes down what came of each."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed import every_check
from tests.distributed.ranks import Ranks, of_all_ranks

TIMEOUT = timedelta(seconds=60)  # a rank that waits for one that failed gives up after this


def main(rank: int, world: int, folder: Path, log: Path) -> None:
    """Leaves in `folder` what failed of each check, in `log` what was printed; 1: it gave up."""
    with log.open("wb") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    torch.set_num_threads(1)
    store = f"file://{folder}/store-of-{world}"
    dist.init_process_group("gloo", store, timeout=TIMEOUT, rank=rank, world_size=world)
    for name, check in every_check.CHECKS[world].items():
        try:
            check(Ranks(rank, world, folder))
            outcome = ""
        except Exception:
            outcome = f"rank {rank} of {world}:\n{traceback.format_exc()}"
        (folder / f"{name}.{world}.{rank}").write_text(outcome)
        failed = list(map(bool, of_all_ranks(outcome)))
        if any(failed) and not all(failed):
            sys.exit(1)  # the ranks may no longer agree on what they communicate next
    dist.destroy_process_group()
