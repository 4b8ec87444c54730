"""torch's distributed checkpoint: saved by two ranks, loaded by three and by one."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import fusedstep
from tests.distributed.ranks import Ranks, check
from tests.distributed.side_by_side import SideBySide, make_model, shard, whole

STEPS = 3


def folder_of(ranks: Ranks) -> Path:
    return ranks.folder / "checkpoint"


def load(path: Path, model: Any, optimizer: Any) -> None:
    """The checkpoint, into a model and an optimizer that may be divided otherwise."""
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(states, checkpoint_id=path)
    set_state_dict(
        model, optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"]
    )


@check(2, 3)
def saved_by_two_loaded_by_three(ranks: Ranks) -> None:
    """Training continues as if it had been one process throughout."""
    models = SideBySide(shard, ranks.rank, ranks.world)
    if ranks.world == 2:
        for _ in range(STEPS):
            models.step()
        model, optimizer = get_state_dict(models.spread, models.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder_of(ranks))
        return
    for _ in range(STEPS):
        models.step_alone()
    load(folder_of(ranks), models.spread, models.optimizer)
    for _ in range(STEPS):
        models.step()


@check(2)
def whole_state_on_one_rank(ranks: Ranks) -> None:
    """full_state_dict=True gathers what one process would have; it loads the same way."""
    models = SideBySide(shard, ranks.rank, ranks.world)
    models.step()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    full = get_optimizer_state_dict(models.spread, models.optimizer, options=options)
    alone = get_optimizer_state_dict(models.alone, models.reference)
    if ranks.rank == 0:
        assert full["state"].keys() == alone["state"].keys()
        for name, state in full["state"].items():
            for key, value in state.items():
                torch.testing.assert_close(value, alone["state"][name][key])
    models.optimizer = type(models.optimizer)(models.spread.parameters(), lr=0.01, max_norm=0.05)
    spread = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(models.spread, models.optimizer, full, options=spread)
    models.step()


@check(2)
def own_state_dict(ranks: Ranks) -> None:
    """torch.optim's own state_dict, of this rank's part, into an optimizer of the same ranks."""
    models = SideBySide(shard, ranks.rank, ranks.world)
    models.step()
    saved = models.optimizer.state_dict()
    models.optimizer = type(models.optimizer)(models.spread.parameters(), lr=0.01, max_norm=0.05)
    models.optimizer.load_state_dict(saved)
    models.step()


@check(2)
def own_state_dict_of_half_precision_shards(ranks: Ranks) -> None:
    """Their state is float32, and stays so."""
    model = shard(make_model(torch.bfloat16))
    first, second = (fusedstep.AdamW(model.parameters(), max_norm=1.0) for _ in range(2))
    model(torch.ones(2, 5, dtype=torch.bfloat16)).sum().backward()
    first.step()
    second.load_state_dict(deepcopy(first.state_dict()))  # torch would share what it need not cast
    for optimizer in (second, first):
        assert all(optimizer.state[p]["step"] == 1 for p in model.parameters())
        optimizer.step()
    for param in model.parameters():
        for name in ("exp_avg", "exp_avg_sq"):
            loaded, kept = second.state[param][name], first.state[param][name]
            assert loaded.dtype == torch.float32
            assert loaded.placements == param.placements
            assert torch.equal(whole(loaded), whole(kept))
