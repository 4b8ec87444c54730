"""State of every mode, divided in every way, through every kind of checkpoint: not a bit differs.

Each mode goes through each kind of checkpoint once, and each of both is divided in each way.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import fusedstep
from fusedstep.optim.blocks import has_rows
from fusedstep.optim.distributed import local
from tests.distributed.divided import (
    Divided,
    Wrap,
    alone,
    assert_same_parts,
    assert_same_wholes,
    sharded,
    sharded_and_replicated,
    sharded_and_split,
    split,
)
from tests.distributed.ranks import Ranks, check

BF16 = torch.bfloat16
MODES: dict[str, tuple[Any, dict[str, Any]]] = {
    "int8": (fusedstep.AdamW, {"state_dtype": "int8", "amsgrad": True}),
    "bfloat16": (fusedstep.Lion, {"state_dtype": BF16, "dtype": BF16}),
    "master": (fusedstep.SGD, {"master": "float32", "momentum": 0.9, "dampening": 0.5}),
    "remainder": (fusedstep.RMSprop, {"master": "remainder", "momentum": 0.9, "centered": True}),
    "ema": (fusedstep.AdamW, {"ema_decay": 0.9}),
    "correction, int8": (fusedstep.AdamW, {"master": "correction", "state_dtype": "int8"}),
    "remainder, int8": (
        fusedstep.Adagrad, {"master": "remainder", "state_dtype": "int8", "ema_decay": 0.9},
    ),
    "correction": (fusedstep.Adagrad, {"master": "correction", "state_dtype": BF16}),
}  # fmt: skip
WITHOUT_CODES = [mode for mode in MODES if "int8" not in mode]
TO_NEAREST = ("master", "remainder", "ema")  # all others round stochastically


def make(wrap: Wrap, mode: str) -> Divided:
    kind, options = MODES[mode]
    dtype = BF16 if "master" in options else torch.float32
    return Divided(wrap, kind, **{"lr": 0.01, "weight_decay": 0.1, "dtype": dtype} | options)


# --- ways into a file and back --------------------------------------------------------------------


def through_files(saved: Divided, loaded: Divided, path: Path, **planners: Any) -> None:
    save(saved, path, planner=planners.get("saves"))
    load(loaded, path, planner=planners.get("loads"))


def save(saved: Divided, path: Path, **planner: Any) -> None:
    model, optimizer = get_state_dict(saved.model, saved.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=path, **planner)


def load(loaded: Divided, path: Path, **planner: Any) -> None:
    model, optimizer = get_state_dict(loaded.model, loaded.optimizer)
    found = {"model": model, "optimizer": optimizer}
    dcp.load(found, checkpoint_id=path, **planner)
    set_state_dict(
        loaded.model, loaded.optimizer,
        model_state_dict=found["model"], optim_state_dict=found["optimizer"],
    )  # fmt: skip


def with_planners(saved: Divided, loaded: Divided, path: Path) -> None:
    planners = {"saves": DefaultSavePlanner(), "loads": DefaultLoadPlanner()}
    through_files(saved, loaded, path, **planners)


def flattened(saved: Divided, loaded: Divided, path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    states = [
        dict(zip("mo", get_state_dict(one.model, one.optimizer, options=options), strict=True))
        for one in (saved, loaded)
    ]
    dcp.save(states[0], checkpoint_id=path)
    dcp.load(states[1], checkpoint_id=path)
    set_state_dict(
        loaded.model, loaded.optimizer, model_state_dict=states[1]["m"],
        optim_state_dict=states[1]["o"], options=options,
    )  # fmt: skip


def whole(saved: Divided, loaded: Divided, path: Path) -> None:
    """Gathered whole on all ranks, of which each takes its part."""
    options = StateDictOptions(full_state_dict=True)
    put(loaded, *deepcopy(get_state_dict(saved.model, saved.optimizer, options=options)), options)


def put(loaded: Divided, model: Any, optimizer: Any, options: StateDictOptions) -> None:
    # One by one: together, a rank that has nothing does not take part in loading the model.
    set_model_state_dict(loaded.model, model, options=options)
    set_optimizer_state_dict(loaded.model, loaded.optimizer, optimizer, options=options)


def from_rank_0(saved: Divided, loaded: Divided, path: Path) -> None:
    """Gathered whole, and sent to all ranks by the one that has it."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    states = deepcopy(get_state_dict(saved.model, saved.optimizer, options=options))
    put(loaded, *on_rank_0(lambda: states), options)


def on_rank_0(read: Callable[[], Any]) -> Any:
    """What `read` returns; on other ranks two empty dictionaries."""
    return read() if torch.distributed.get_rank() == 0 else ({}, {})


def from_a_file_of_rank_0(saved: Divided, loaded: Divided, path: Path) -> None:
    """On the host, by torch.save and by torch.load with weights_only=True."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states: Any = get_state_dict(saved.model, saved.optimizer, options=options)

    def through_the_file() -> Any:
        torch.save(states, path)
        return torch.load(path, weights_only=True)

    loading = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    put(loaded, *on_rank_0(through_the_file), loading)


def own(saved: Divided, loaded: Divided, path: Path) -> None:
    """Each rank's part in a buffer of its own, by the optimizer's methods."""
    buffer = io.BytesIO()
    torch.save([saved.model.state_dict(), saved.optimizer.state_dict()], buffer)
    buffer.seek(0)
    model, optimizer = torch.load(buffer, weights_only=True)
    loaded.model.load_state_dict(model)
    loaded.optimizer.load_state_dict(optimizer)


def safetensors(saved: Divided, loaded: Divided, path: Path) -> None:
    """Flat names for tensors, the groups in the file's metadata.

    Flattened here: torch sends no flattened checkpoint from one rank to the others.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states: Any = get_state_dict(saved.model, saved.optimizer, options=options)

    def through_the_file() -> Any:
        model, optimizer = states
        named = {f"model/{name}": value for name, value in model.items()}
        for param, entries in optimizer["state"].items():
            named |= {f"state/{param}/{name}": value for name, value in entries.items()}
        tensors = {name: value.contiguous() for name, value in named.items()}
        save_file(tensors, path, metadata={"groups": json.dumps(optimizer["param_groups"])})
        model, state = {}, {}
        for name, value in load_file(path).items():
            kind, param, *entry = name.split("/")
            if kind == "model":
                model[param] = value
            else:
                state.setdefault(param, {})[entry[0]] = value
        with safe_open(path, "pt") as file:
            groups = json.loads(file.metadata()["groups"])
        return model, {"state": state, "param_groups": groups}

    loading = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    put(loaded, *on_rank_0(through_the_file), loading)


WAYS: list[Callable[[Divided, Divided, Path], None]] = [
    through_files, with_planners, flattened, whole, from_rank_0, from_a_file_of_rank_0, own,
    safetensors,
]  # fmt: skip
WRAPS: list[Wrap] = [sharded, sharded_and_replicated, split, sharded_and_split]


# --- checks ---------------------------------------------------------------------------------------


def wrap_of(i: int, j: int) -> Wrap:
    """How the i-th mode is divided when it goes the j-th way."""
    wrap = WRAPS[(i + j) % len(WRAPS)]
    # torch's distribute_tensor refuses rows that both dimensions of a mesh share unevenly.
    return sharded if wrap is sharded_and_split and WAYS[j] is whole else wrap


def round_trips(ranks: Ranks, wraps: list[Wrap]) -> None:
    for i, mode in enumerate(MODES):
        for j, way in enumerate(WAYS):
            if wrap_of(i, j) in wraps:
                try:
                    round_trip(wrap_of(i, j), mode, way, ranks.folder / f"{mode}-{way.__name__}")
                except Exception as error:
                    where = f"{mode}, {wrap_of(i, j).__name__}, {way.__name__}"
                    raise AssertionError(where) from error


def round_trip(wrap: Wrap, mode: str, way: Callable[..., None], path: Path) -> None:
    first, second = make(wrap, mode), make(wrap, mode)
    first.run(*range(3))
    second.run(20)  # something else is there
    way(first, second, path)
    assert_same_parts(second, first)
    for one in (first, second):
        one.run(*range(3, 13))
    assert_same_parts(second, first)


@check(2)
def every_mode_through_every_checkpoint_on_two_ranks(ranks: Ranks) -> None:
    round_trips(ranks, [sharded, split])


@check(4)
def every_mode_through_every_checkpoint_on_four_ranks(ranks: Ranks) -> None:
    round_trips(ranks, [sharded_and_replicated, sharded_and_split])


def as_in_one_process(mode: str, *runs: Divided) -> list[int]:
    """The parameters whose bits do not depend on the division, of those that these runs have.

    Columns draw random numbers by their place in the shard, and odd shapes have codes in one
    process alone.
    """
    return [
        i
        for i, param in enumerate(runs[0].params)
        if mode in TO_NEAREST
        or (all(run.in_order(i) for run in runs) and ("int8" not in mode or has_rows(param)))
    ]


def assert_continues(loaded: Divided, mode: str, wholes: Any, *before: Divided) -> None:
    """`loaded` has these values, and goes on as what is given them, and as one process does."""
    assert_same_wholes(loaded.wholes(), wholes)
    direct, one = make(loaded.wrap, mode), make(alone, mode)
    direct.run(20)
    direct.put(wholes)
    one.run(*range(3))
    for run in (loaded, direct, one):
        run.run(*range(3, 13))
    assert_same_parts(loaded, direct)
    same = as_in_one_process(mode, loaded, *before)
    assert same
    assert_same_wholes(loaded.wholes(same), one.wholes(same))


@check(2, 3)
def saved_by_two_ranks_loaded_by_three(ranks: Ranks) -> None:
    for mode in MODES:
        path = ranks.folder / f"resharded-{mode}"
        if ranks.world == 2:
            first = make(sharded, mode)
            first.run(*range(3))
            save(first, path)
            torch.save(first.wholes(), path / f"wholes-{ranks.rank}")
        else:
            second = make(sharded, mode)
            load(second, path)
            assert_continues(second, mode, torch.load(path / "wholes-0"))


@check(4)
def saved_in_one_division_loaded_in_another(ranks: Ranks) -> None:
    """Four shards become two, rows that were divided once are divided twice, and back."""
    pairs = [
        (sharded, sharded_and_replicated), (sharded, sharded_and_split),
        (sharded_and_split, sharded_and_replicated), (sharded_and_replicated, sharded),
    ]  # fmt: skip
    for k, mode in enumerate(MODES):
        before, after = pairs[k % len(pairs)]
        first, second = make(before, mode), make(after, mode)
        first.run(*range(3))
        path = ranks.folder / f"divided-{mode}"
        save(first, path)
        load(second, path)
        assert_continues(second, mode, first.wholes(), first)


def values_of(run: Divided) -> list[dict[str, torch.Tensor]]:
    """The state of each parameter in float32, whole."""
    states = run.optimizer.to_torch_state_dict()["state"]
    entries = [{name: local(value) for name, value in states[i].items()} for i in states]
    return run.together(entries)


@check(2)
def plain_state_into_shards_and_back(ranks: Ranks) -> None:
    """Codes of biases become float32 and are rounded to codes again; rows of blocks keep theirs."""
    for mode in MODES:
        for before, after in ((alone, sharded), (sharded, alone)):
            first, *others = (make(wrap, mode) for wrap in (before, after, after, after))
            first.run(*range(3))
            for loaded, way in zip(others, (through_files, whole, from_rank_0), strict=True):
                loaded.run(20)
                way(first, loaded, ranks.folder / f"plain-{mode}-{before.__name__}")
            saved, found = values_of(first), values_of(others[0])
            coded = after is alone and "int8" in mode
            for i, param in enumerate(first.params):
                if coded and param.shape[-1] % 128:
                    for name, value in found[i].items():
                        rough = {"rtol": 0.13, "atol": 0.01 * float(saved[i][name].abs().max())}
                        torch.testing.assert_close(value, saved[i][name], **rough)
                    saved[i] = found[i]
            assert_same_wholes(found, saved)
            for loaded in others:
                loaded.run(*range(3, 13))
                assert_same_parts(loaded, others[0])


def sometimes_missing(step: int, i: int) -> bool:
    """The first never has a gradient, the others now and then."""
    return i == 0 or (step + i) % 3 == 0


@check(2, 3)
def gradients_that_are_missing_never_or_at_times(ranks: Ranks) -> None:
    """Counts and averages are those of one process, also after a checkpoint."""
    for mode in WITHOUT_CODES:
        spread, again, one = make(sharded, mode), make(sharded, mode), make(alone, mode)
        for run in (spread, one):
            run.run(*range(5), missing=sometimes_missing)
        path = ranks.folder / f"missing-{mode}-{ranks.world}"
        save(spread, path)
        load(again, path, planner=DefaultLoadPlanner(allow_partial_load=True))
        for run in (spread, again, one):
            run.run(*range(5, 10), missing=sometimes_missing)
        assert_same_wholes(spread.wholes(), one.wholes())
        never, *others = again.wholes()
        assert_same_wholes(others, one.wholes()[1:])
        assert spread.wholes()[0].keys() == {"param"}
        assert float(never.get("step", 0)) == 0  # torch had it make its state
        for run in (again, one):
            run.run(*range(10, 13))  # the first has gradients at last
        first, expected = again.wholes()[0], one.wholes()[0]
        if mode == "ema":  # an average that exists advances, with a rounding each step
            torch.testing.assert_close(first.pop("ema"), expected.pop("ema"))
        assert_same_wholes([first, *again.wholes()[1:]], [expected, *one.wholes()[1:]])


@check(4)
def shards_without_an_element(ranks: Ranks) -> None:
    """Three rows on four ranks, and groups of which a rank has nothing at all."""
    for mode in (*WITHOUT_CODES, "int8", "correction, int8"):
        first, second, one = (make(wrap, mode) for wrap in (sharded, sharded, alone))
        for run in (first, second, one):
            odd = run.params[4:]  # [3, 5] and [3], in a group of their own
            for group in run.optimizer.param_groups:
                group["params"] = run.params[:4]
            run.optimizer.add_param_group({"params": odd})
        assert any(local(param).numel() for param in first.params[4:]) == (ranks.rank < 3)
        for run in (first, one):
            run.run(*range(3))
        through_files(first, second, ranks.folder / f"empty-{mode}")
        for run in (first, second, one):
            run.run(*range(3, 13))
        assert_same_parts(second, first)
        if mode in WITHOUT_CODES:
            assert_same_wholes(second.wholes(), one.wholes())
