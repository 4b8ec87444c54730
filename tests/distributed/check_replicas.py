"""DistributedDataParallel, and ZeroRedundancyOptimizer, which gives each rank some parameters."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import fusedstep
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check, of_all_ranks
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
    options = {"optimizer_class": fusedstep.AdamW, "lr": 0.01} | options
    return model, ZeroRedundancyOptimizer(model.parameters(), **options)


@check(2)
def each_rank_has_some_of_the_parameters(ranks: Ranks) -> None:
    """A norm of a rank's own gradients is refused, and averages of its own parameters."""
    must = r"be {} in a ZeroRedundancyOptimizer without norm_groups=\[its group\]"
    with refuses("AdamW", "max_norm", must.format("None"), "1.0", ValueError):
        divided(max_norm=1)
    skip = must.format("'propagate'"), "'skip'"
    with refuses("AdamW", "nonfinite", *skip, ValueError):
        divided(nonfinite="skip")
    other = dist.new_group([0, 1])
    contain = "contain the ZeroRedundancyOptimizer's process group"
    with refuses("AdamW", "norm_groups", contain, "1 others", ValueError):
        divided(optimizer_class=partial(fusedstep.AdamW, norm_groups=[other]), max_norm=1)
    bound = r"be bound to the class, functools\.partial\(AdamW, norm_groups=\[its group\]\)"
    got = "an argument of a ZeroRedundancyOptimizer"
    with refuses("AdamW", "norm_groups", bound, got, ValueError):
        divided(max_norm=1, norm_groups=[dist.group.WORLD])
    _, zero = divided(ema_decay=0.5)
    for optimizer in (zero.optim, deepcopy(zero.optim)):
        with refuses("AdamW", "nonfinite", *skip, ValueError):
            optimizer.nonfinite = "skip"
        assert optimizer.nonfinite == "propagate"
    must = "have all parameters where averages are swapped in"
    got = "a ZeroRedundancyOptimizer's part"
    with refuses("AdamW", "the optimizer", must, got, ValueError), zero.optim.swap_ema():
        raise AssertionError


@check(2, 3)
def a_norm_over_the_ranks_that_divide_the_parameters(ranks: Ranks) -> None:
    """ZeRO-1 that clips as one optimizer of all parameters does, before and after a checkpoint."""
    options = {"lr": 0.01, "max_norm": 0.05, "nonfinite": "skip"}
    for count in (6, 1):  # parameters: of 1, all ranks but one have none
        models = [DistributedDataParallel(make_model(torch.float32)) for _ in range(3)]
        params = [list(model.parameters())[:count] for model in models]
        reference = fusedstep.AdamW(params[0], **options)
        kind = partial(fusedstep.AdamW, norm_groups=[dist.group.WORLD])
        optimizer, loading = (
            ZeroRedundancyOptimizer(of_model, kind, **options) for of_model in params[1:]
        )
        for step in range(5):
            if step == 3:
                optimizer.consolidate_state_dict()
                saved = deepcopy(optimizer.state_dict()) if ranks.rank == 0 else None
                loading.load_state_dict(of_all_ranks(saved)[0])
                models[2].load_state_dict(deepcopy(models[1].state_dict()))
            stepped = [reference, optimizer, loading][: 2 if step < 3 else 3]
            generator = torch.Generator().manual_seed(10 * step + ranks.rank)
            x = torch.randn(4, 5, generator=generator)
            for one, model, of_model in zip(stepped, models, params, strict=False):
                model.zero_grad()
                model(x).square().mean().backward()
                here = one.param_groups if one is reference else one.optim.param_groups
                if step == 1 and any(param is of_model[0] for param in here[0]["params"]):
                    of_model[0].grad[0, 0] = math.nan  # of ZeRO's, on one rank
                before = [param.detach().clone() for param in of_model]
                one.step()
                assert all(map(torch.equal, of_model, before)) == (step == 1)
                norm = (one if one is reference else one.optim).grad_norm
                assert_same_on_all_ranks(norm, "grad_norm")
                assert norm.isfinite() == (step != 1)
                torch.testing.assert_close(
                    norm, reference.grad_norm, rtol=1e-6, atol=0, equal_nan=True
                )
            for of_model in params[1 : len(stepped)]:
                for param, expected in zip(of_model, params[0], strict=True):
                    torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-6)


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
