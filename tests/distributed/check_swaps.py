"""swap_ema where others hold copies of the parameters: the average is evaluated, and then left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, ShardingStrategy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import fusedstep
from fusedstep.optim import averages
from tests.distributed.check_tensor_parallel import split
from tests.distributed.ranks import Ranks, check
from tests.distributed.side_by_side import make_model, older, whole
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits

INPUT = torch.linspace(-1, 1, 20).view(4, 5)
Wrap = Callable[[nn.Sequential], nn.Module]


def root_with_layers(model: nn.Sequential, **options: Any) -> nn.Module:
    """The root has layers of its own, which stay gathered after a forward."""
    fully_shard(model[0], **options)
    return fully_shard(model, **options)


def train(wrap: Wrap, rank: int, validate: bool, model_given: bool) -> tuple[nn.Module, list[Any]]:
    """Three steps, with or without a validation before the last; the model, what was evaluated."""
    model, seen = wrap(make_model(torch.float32)), []
    optimizer = fusedstep.AdamW(model.parameters(), lr=0.1, ema_decay=0.5)
    for step in range(3):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * step + rank))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if validate and step == 1:
            with torch.no_grad():
                seen.append(model(INPUT).float())
                with optimizer.swap_ema(model if model_given else None):
                    seen.append(model(INPUT).float())
                seen.append(model(INPUT).float())
    return model, seen


def averaging(model: nn.Module, x: Tensor = INPUT) -> fusedstep.AdamW:
    """An optimizer of the model after one step, with averages."""
    optimizer = fusedstep.AdamW(model.parameters(), lr=0.1, ema_decay=0.5)
    model(x).sum().backward()
    optimizer.step()
    return optimizer


def local_bits(model: nn.Module) -> Iterator[Tensor]:
    return map(whole, model.parameters())


@check(2)
def averages_are_evaluated_and_parameters_trained(ranks: Ranks) -> None:
    """The average of steps 1 and 2 is the same however the model is divided."""
    bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    wraps: list[tuple[Wrap, bool]] = [
        (DistributedDataParallel, False),
        (root_with_layers, False),
        (root_with_layers, True),
        (lambda model: root_with_layers(model, reshard_after_forward=False), False),
        (lambda model: root_with_layers(model, mp_policy=bfloat16), False),
        *((older(use_orig_params=names), True) for names in (False, True)),
        (older(sharding_strategy=ShardingStrategy.SHARD_GRAD_OP), True),
    ]
    expected: list[Tensor] = []
    for wrap, model_given in wraps:
        undisturbed, _ = train(wrap, ranks.rank, False, model_given)
        model, seen = train(wrap, ranks.rank, True, model_given)
        for param, other in zip(local_bits(model), local_bits(undisturbed), strict=True):
            assert_same_bits(param, other, "a parameter after validation")
        assert torch.equal(seen[0], seen[2])
        expected = expected or seen
        assert not torch.allclose(expected[0], expected[1], rtol=0.1, atol=0)
        for one, other in zip(seen, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


@check(2)
def gathers_on_their_way_are_dropped(ranks: Ranks) -> None:
    """unshard(async_op=True) before the block does not bring the parameters into it."""
    model = root_with_layers(make_model(torch.float32))
    optimizer = averaging(model)
    with torch.no_grad():
        with optimizer.swap_ema():
            expected = model(INPUT)
        model[0].unshard(async_op=True)
        with optimizer.swap_ema():
            assert torch.equal(model(INPUT), expected)


@check(2)
def splits_need_no_module(ranks: Ranks) -> None:
    """Tensor parallelism holds no copies, and another model's FSDP is left alone."""
    other = root_with_layers(make_model(torch.float32))
    with torch.no_grad():
        other(INPUT)
    model = split(make_model())
    optimizer = averaging(model, INPUT.double())
    with optimizer.swap_ema():
        for param, average in zip(model.parameters(), optimizer.ema_parameters(), strict=True):
            assert torch.equal(whole(param), whole(average))
        assert not hasattr(other[2].weight, "placements")  # still gathered


@check(2)
def modules_that_cannot_be_found_must_be_given(ranks: Ranks) -> None:
    """They are found by torch's private names."""
    model = root_with_layers(make_model(torch.float32))
    optimizer = averaging(model)
    with torch.no_grad():
        before = model(INPUT)
    with patch.object(averages, "_registered", side_effect=ImportError("no such name")):
        must = "be given, since this torch does not tell which modules gather the parameters"
        got = r"None \(no such name\)"
        with refuses("AdamW", "model", must, got, ValueError), optimizer.swap_ema():
            raise AssertionError
        with torch.no_grad(), optimizer.swap_ema(model):
            assert not torch.equal(model(INPUT), before)


@check(2)
def the_older_fsdp_needs_its_module(ranks: Ranks) -> None:
    for names in (False, True):
        model = older(use_orig_params=names)(make_model(torch.float32))
        optimizer = fusedstep.AdamW(model.parameters(), ema_decay=0.5)
        model(INPUT).sum().backward()
        optimizer.step()
        before = [param.detach().clone() for param in model.parameters()]
        for given, must, got in (
            (None, "be the FSDP1 module, .*", "None"),
            (make_model(), r"be the FSDP1 module that has params\[0\]", "Sequential"),
        ):
            with refuses("AdamW", "model", must, got, ValueError), optimizer.swap_ema(given):
                raise AssertionError
        assert all(map(torch.equal, model.parameters(), before))
        optimizer.step()  # not in the block
