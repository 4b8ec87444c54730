"""DistributedDataParallel: plain parameters, for which equal gradients suffice."""

from __future__ import annotations

from torch.nn.parallel import DistributedDataParallel

from tests.distributed.ranks import Ranks, check
from tests.distributed.side_by_side import SideBySide


@check(2)
def distributed_data_parallel(ranks: Ranks) -> None:
    for bucket_view in (False, True):  # gradients that are views of the buckets
        models = SideBySide(
            lambda model, view=bucket_view: DistributedDataParallel(
                model, gradient_as_bucket_view=view
            ),
            ranks.rank,
            ranks.world,
        )
        for _ in range(3):
            models.step()
