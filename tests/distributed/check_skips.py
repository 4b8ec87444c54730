"""What one rank finds, all ranks heed: non-finite gradients, GradScaler, missing gradients."""

from __future__ import annotations

import math

import torch

import fusedstep
from fusedstep.optim.distributed import placed_like
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check, of_all_ranks
from tests.distributed.side_by_side import SideBySide, make_model, shard, whole


def poison(models: SideBySide, ranks: Ranks, value: float) -> None:
    """One element of one rank's shard, of the first parameter."""
    if ranks.rank == ranks.world - 1:
        next(models.spread.parameters()).grad.to_local()[0, 0] = value


@check(2, 3)
def all_ranks_skip_what_one_cannot_use(ranks: Ranks) -> None:
    for value in (math.nan, math.inf):
        models = SideBySide(shard, ranks.rank, ranks.world, nonfinite="skip", max_norm=None)
        models.step()
        before = [whole(p).clone() for p in models.spread.parameters()]
        models.backward()
        poison(models, ranks, value)
        models.optimizer.step()
        assert not models.optimizer.grad_norm.isfinite()
        assert_same_on_all_ranks(models.optimizer.grad_norm, "grad_norm")
        for param, kept in zip(models.spread.parameters(), before, strict=True):
            assert torch.equal(whole(param), kept)
            assert models.optimizer.state[param]["step"] == 1


@check(2, 3)
def all_ranks_raise_for_what_one_cannot_use(ranks: Ranks) -> None:
    models = SideBySide(shard, ranks.rank, ranks.world, nonfinite="error")
    models.backward()
    poison(models, ranks, math.nan)
    raised = []
    calls = (
        models.optimizer.step,
        lambda: fusedstep.clip_grad_norm_(models.spread.parameters(), 1.0, error_if_nonfinite=True),
    )
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            raised.append(str(error))
    assert len(raised) == 2
    assert "nothing was changed" in raised[0]
    assert of_all_ranks(raised) == [raised] * ranks.world


@check(2)
def grad_scaler(ranks: Ranks) -> None:
    models = SideBySide(shard, ranks.rank, ranks.world, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=100)
    scaler.scale(torch.zeros(()))  # the scaler makes its tensors at the first use
    for inf in (False, True, False):
        models.backward()
        for param in models.spread.parameters():
            param.grad.mul_(scaler.get_scale())
        before = [whole(p).clone() for p in models.spread.parameters()]
        if inf:
            poison(models, ranks, math.inf)
        else:
            models.reference.step()
        scaler.step(models.optimizer)
        scaler.update()
        models.discard()
        if inf:
            assert all(map(torch.equal, map(whole, models.spread.parameters()), before))
        else:
            models.check()
    assert scaler.get_scale() == 32.0


@check(2, 3)
def ranks_without_some_or_any_gradient(ranks: Ranks) -> None:
    """They take part in the norm all the same: nobody waits, and all ranks find the same."""
    params = list(shard(make_model()).parameters())
    everything = range(len(params))
    for steps in ([[], [0], everything], [everything, [0]]):  # of parameters missing on one rank
        optimizer = fusedstep.AdamW(params, max_norm=1.0)
        for missing in steps:
            for i, param in enumerate(params):
                here = torch.full_like(param.to_local(), i + 1.0)
                absent = ranks.rank == 0 and i in missing
                param.grad = None if absent else placed_like(param, here)
            present = [param.grad.to_local() for param in params if param.grad is not None]
            squares = sum(float(grad.square().sum()) for grad in present)
            norm = fusedstep.clip_grad_norm_(params, 1e9)
            optimizer.step()
            for found in (norm, optimizer.grad_norm):
                assert_same_on_all_ranks(found, "norm")
                assert math.isclose(found, math.sqrt(sum(of_all_ranks(squares))), rel_tol=1e-6)


@check(2)
def no_gradient_on_any_rank_at_the_first_step(ranks: Ranks) -> None:
    model = shard(make_model())
    optimizer = fusedstep.AdamW(model.parameters(), max_norm=1.0)
    before = [whole(p).clone() for p in model.parameters()]
    optimizer.step()
    assert all(map(torch.equal, map(whole, model.parameters()), before))
    assert fusedstep.clip_grad_norm_(model.parameters(), 1.0) == 0
