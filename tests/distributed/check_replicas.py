"""DistributedDataParallel, and ZeroRedundancyOptimizer, which gives each rank some parameters."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import fusedstep
from tests.distributed.ranks import Ranks, check, of_all_ranks
from tests.distributed.side_by_side import SideBySide, make_model
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits


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


def divided(**options: Any) -> tuple[DistributedDataParallel, ZeroRedundancyOptimizer]:
    model = DistributedDataParallel(make_model(torch.bfloat16))
    return model, ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=fusedstep.AdamW, lr=0.01, **options
    )


@check(2)
def each_rank_has_some_of_the_parameters(ranks: Ranks) -> None:
    """A norm of a rank's own gradients is refused, and averages of its own parameters."""
    must = "be {} in a ZeroRedundancyOptimizer, where ranks have different ones"
    with refuses("AdamW", "max_norm", must.format("None"), "1.0", ValueError):
        divided(max_norm=1)
    skip = must.format("'propagate'"), "'skip'"
    with refuses("AdamW", "nonfinite", *skip, ValueError):
        divided(nonfinite="skip")
    _, zero = divided(ema_decay=0.5)
    for optimizer in (zero.optim, deepcopy(zero.optim)):
        with refuses("AdamW", "nonfinite", *skip, ValueError):
            optimizer.nonfinite = "skip"
        assert optimizer.nonfinite == "propagate"
    must = "have all parameters where averages are swapped in"
    got = "a ZeroRedundancyOptimizer's part"
    with refuses("AdamW", "the optimizer", must, got, ValueError), zero.optim.swap_ema():
        raise AssertionError


@check(2)
def consolidated_state_is_divided_again(ranks: Ranks) -> None:
    """It puts entries of a checkpoint directly into the optimizer's state."""
    for options in (
        {"master": "remainder", "ema_decay": 0.5},
        {"master": "correction", "state_dtype": "int8"},
    ):
        (model, optimizer), (other, loading) = divided(**options), divided(**options)
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(ranks.rank)).bfloat16()
        for step in range(4):
            for one, zero in ((model, optimizer), (other, loading))[: 1 if step < 2 else 2]:
                one(x).float().square().mean().backward()
                zero.step()
                zero.zero_grad()
            if step == 1:
                optimizer.consolidate_state_dict()
                whole = deepcopy(optimizer.state_dict()) if ranks.rank == 0 else None
                other.load_state_dict(deepcopy(model.state_dict()))
                loading.load_state_dict(of_all_ranks(whole)[0])
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert_same_bits(q, p, "a parameter")
            for name, value in optimizer.optim.state[p].items():
                assert_same_bits(loading.optim.state[q][name], value, name)
