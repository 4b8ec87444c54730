"""One of several processes: runs the checks for their number, and writes down what came of each."""

from __future__ import annotations

import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from distributed import every_check
from distributed.ranks import Ranks, of_all_ranks

TIMEOUT = timedelta(seconds=60)  # a rank that waits for one that failed gives up after this


def main(rank: int, world: int, folder: Path) -> int:
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
            return 1  # the ranks may no longer agree on what they communicate next
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
