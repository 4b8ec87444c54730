"""torch.distributed.checkpoint's functions with plain parameters, in one process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
)

import fusedstep
from tests.support.modes import MODES, every_kind_and_mode
from tests.support.optimizers import Kind, assert_same_run, params_of
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import assert_same_bits, set_grads


def make_model(**dtype: Any) -> nn.Sequential:
    """A weight whose rows are whole blocks, one whose rows are not, and vectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 5), nn.Linear(5, 3)).to(**dtype)


def run(optimizer: Any, steps: range) -> None:
    for step in steps:
        set_grads(params_of(optimizer), seed=step)
        optimizer.step()
    optimizer.zero_grad()


@every_kind_and_mode
def test_a_look_at_the_state_of_a_new_optimizer_changes_nothing(kind: Kind, mode: str) -> None:
    """torch has it make its state by a step with zero gradients, which would count."""
    options, dtype = MODES[mode]
    model, twin = make_model(**dtype), make_model(**dtype)
    watched = kind.ours(model.parameters(), max_norm=1.0, **options)
    optimizer = kind.ours(twin.parameters(), max_norm=1.0, **options)
    before = copy.deepcopy(list(model.parameters()))
    seen = get_optimizer_state_dict(model, watched)["state"]
    assert all(float(entries.get("step", 0)) == 0 for entries in seen.values())
    assert len(seen) == (4 if watched.state else 0)
    for p, q in zip(model.parameters(), before, strict=True):
        assert_same_bits(p, q)
    for one in (watched, optimizer):
        run(one, range(3))
    if any(optimizer.state.values()):
        assert_same_run(watched, optimizer)


def test_a_first_step_with_rate_and_gradients_of_zero_counts() -> None:
    """As where a schedule warms up: nobody but torch's functions looks at a state by a step."""
    optimizer = Kind("AdamW", {}).ours(make_model().parameters(), lr=0.0)
    for param in params_of(optimizer):
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(float(state["step"]) == 1 for state in optimizer.state.values())


FORMATS: dict[str, dict[str, Any]] = {
    "float32": {}, "bfloat16": {"state_dtype": torch.bfloat16}, "int8": {"state_dtype": "int8"},
    "remainder": {"master": "remainder"}, "correction": {"master": "correction"},
    "master": {"master": "float32"}, "ema": {"ema_decay": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("saved", FORMATS)
@pytest.mark.parametrize("loaded", FORMATS)
def test_files_of_another_mode_are_refused_or_read_right(
    saved: str, loaded: str, tmp_path: Path
) -> None:
    """torch copies what has the same name and shape, whatever its dtype."""
    model, other = (make_model(dtype=torch.bfloat16) for _ in range(2))
    saving = Kind("AdamW", {}).ours(model.parameters(), **FORMATS[saved])
    run(saving, range(3))
    dcp.save({"optimizer": get_state_dict(model, saving)[1]}, checkpoint_id=tmp_path)
    loading = Kind("AdamW", {}).ours(other.parameters(), **FORMATS[loaded])
    found = {"optimizer": get_state_dict(other, loading)[1]}
    extra = {"remainder", "correction", "master", "ema"}  # what the other lacks is not read
    if loaded != saved and (loaded in extra or "int8" in (saved, loaded)):
        with pytest.raises(dcp.api.CheckpointException, match="Missing key"):
            dcp.load(found, checkpoint_id=tmp_path)
        return
    dcp.load(found, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, loading, found["optimizer"])
    rough = {"rtol": 0.01, "atol": 0.0} if "bfloat16" in (saved, loaded) else {}
    states = (one.to_torch_state_dict()["state"] for one in (loading, saving))
    for ours, theirs in zip(*(state.values() for state in states), strict=True):
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], **rough)


# --- NorMuon's moments, which no table lists as a state -------------------------------------------

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
MOMENT = "second_momentum_buffer"


def make_muon(**options: Any) -> tuple[nn.Module, fusedstep.Muon]:
    """Two weights, and one that no gradient reaches."""
    torch.manual_seed(0)
    shapes = ((8, 16), (4, 8), (2, 3))
    model = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)
    return model, fusedstep.Muon(model.parameters(), lr=0.1, **options)


def run_muon(optimizer: fusedstep.Muon, steps: range) -> None:
    for step in steps:
        set_grads(params_of(optimizer)[:2], seed=step)
        optimizer.step()
    optimizer.zero_grad()


def flattened(model: nn.Module, optimizer: fusedstep.Muon) -> dict[str, Any]:
    return copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=FLAT))


@pytest.mark.parametrize("saved", [None, 0.9], ids=["Muon", "NorMuon"])
@pytest.mark.parametrize("state_dtype", [None, "int8"])
def test_a_flattened_checkpoint_resumes_where_a_matrix_never_stepped(
    saved: float | None, state_dtype: Any
) -> None:
    """torch lists the names that there are in memory: {} is what a checkpoint lacks."""
    model, saving = make_muon(normuon_beta2=saved, state_dtype=state_dtype)
    run_muon(saving, range(3))
    other, loading = make_muon(normuon_beta2=0.9, state_dtype=state_dtype)
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, loading, flattened(model, saving), options=FLAT)
    assert loading.param_groups[0]["normuon_beta2"] == saved
    states = [[one.state.get(p, {}) for p in params_of(one)] for one in (loading, saving)]
    assert [s.keys() for s in states[0]] == [s.keys() for s in states[1]]
    for one in (saving, loading):
        run_muon(one, range(3, 6))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_bits(p, q)


def test_a_flattened_checkpoint_does_not_lose_moments() -> None:
    """torch reads only the names that there are in memory, and a Muon without moments has none."""
    model, saving = make_muon(normuon_beta2=0.9)
    run_muon(saving, range(3))
    other, loading = make_muon()
    run_muon(loading, range(1))
    before = Snapshot(params_of(loading), loading)
    where = f"state of params[0]['{MOMENT}']"
    with refuses("Muon", where, "be present after a step", "None", ValueError):
        set_optimizer_state_dict(other, loading, flattened(model, saving), options=FLAT)
    before.check()
    assert loading.param_groups[0]["normuon_beta2"] is None
