"""How Muon's groups say which matrices their parameters hold: refusals, checkpoints, copies."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.optimizers import assert_same_run
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import copies, make_params, set_grads

ENTRIES = ("split_sizes", "num_heads", "flatten")
QKV = {"split_sizes": (16, 4, 4), "num_heads": (4, 1, 1)}


def stepped(entries: dict[str, Any], *shapes: tuple[int, ...]) -> fusedstep.Muon:
    """A Muon over these shapes that has made a step."""
    params = make_params(*shapes)
    optimizer = fusedstep.Muon([{"params": params, **entries}], lr=0.05)
    step(optimizer, 0)
    return optimizer


def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    set_grads(optimizer.param_groups[0]["params"], seed=seed)
    optimizer.step()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "argument", "must", "got", "kind"),
    [
        ({"split_sizes": 3}, "split_sizes", "be None or a sequence of row counts", "3", TypeError),
        ({"split_sizes": "ab"}, "split_sizes", "be None or a seq.*", "'ab'", TypeError),
        ({"split_sizes": ()}, "split_sizes", "be None or a seq.*", r"\(\)", TypeError),
        ({"split_sizes": (12, 0)}, "split_sizes[1]", "be at least 1", "0", ValueError),
        ({"split_sizes": (6.0, 6)}, "split_sizes[0]", "be an int", "float 6.0", TypeError),
        ({"split_sizes": (True,) * 12}, "split_sizes[0]", "be an int", "bool True", TypeError),
        ({"num_heads": 0}, "num_heads", "be at least 1", "0", ValueError),
        ({"num_heads": 2.0}, "num_heads", "be an int", "float 2.0", TypeError),
        ({"num_heads": True}, "num_heads", "be an int", "bool True", TypeError),
        ({"num_heads": (2,)}, "num_heads", "be None, an int, or one int for each of split_sizes",
         r"\(2,\)", ValueError),
        ({"num_heads": (2, 2, 2), "split_sizes": (6, 6)}, "num_heads", "be None, an int, or one.*",
         r"\(2, 2, 2\)", ValueError),
        ({"num_heads": (2, -1), "split_sizes": (6, 6)}, "num_heads[1]", "be at least 1", "-1",
         ValueError),
        ({"flatten": 1}, "flatten", "be True or False", "1", TypeError),
    ],
)  # fmt: skip
def test_wrong_values(
    entries: dict[str, Any], argument: str, must: str, got: str, kind: type[Exception]
) -> None:
    params = make_params((12, 8))
    with refuses("Muon", argument, must, got, kind):
        fusedstep.Muon(params, **entries)
    key, _, rest = argument.partition("[")
    where = f"param_groups[0]['{key}']" + ("[" + rest if rest else "")
    with refuses("Muon", where, must, got, kind):
        fusedstep.Muon([{"params": params, **entries}])
    refused_everywhere(entries, where, must, got, kind, (12, 8))


@pytest.mark.parametrize(
    ("entries", "key", "must", "got"),
    [
        ({"split_sizes": (4, 4)}, "split_sizes", "sum to the 12 rows of {}", r"\(4, 4\)"),
        ({"split_sizes": (4, 4, 8)}, "split_sizes", "sum to the 12 rows of {}", r"\(4, 4, 8\)"),
        ({"num_heads": 5}, "num_heads", "divide the 12 rows of {}", "5"),
        ({"num_heads": 2, "split_sizes": (7, 5)}, "num_heads", "divide the 7 rows of {}", "2"),
        ({"num_heads": (7, 2), "split_sizes": (7, 5)}, "num_heads", "divide the 5 rows of {}",
         r"\(7, 2\)"),
        ({"num_heads": 24}, "num_heads", "divide the 12 rows of {}", "24"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(12, 8), (2, 12, 3), (12, 2, 2)])
def test_what_does_not_fit_a_parameter(
    entries: dict[str, Any], key: str, must: str, got: str, shape: tuple[int, ...]
) -> None:
    entries = entries | ({"flatten": True} if shape[0] == 12 else {})
    where = f"param_groups[0]['{key}']"
    here = must.format(re.escape("param_groups[0]['params'][0]"))
    with refuses("Muon", where, here, got, ValueError):
        fusedstep.Muon([{"params": make_params(shape), **entries}])
    # A step counts parameters over all groups, in its own words.
    some = must.format(r"params.*")
    refused_everywhere(entries, where, some, got, ValueError, shape)


def refused_everywhere(
    entries: dict[str, Any],
    where: str,
    must: str,
    got: str,
    kind: type[Exception],
    shape: tuple[int, ...],
) -> None:
    """By a step, if the group changed, and in a checkpoint; then nothing has changed."""
    must = must.replace("params.*", r"(params\[0\]|param_groups\[0\]\['params'\]\[0\])")
    optimizer = stepped({"flatten": len(shape) > 2 and shape[0] == 12}, shape)
    params = optimizer.param_groups[0]["params"]
    checkpoint = copy.deepcopy(optimizer.state_dict())
    checkpoint["param_groups"][0].update(entries)
    before, snapshot = dict(optimizer.param_groups[0]), Snapshot(params, optimizer)
    with refuses("Muon", where, must, got, kind):
        optimizer.load_state_dict(checkpoint)
    assert optimizer.param_groups[0] == before
    optimizer.param_groups[0].update(entries)
    with refuses("Muon", where, must, got, kind):
        optimizer.step()
    snapshot.check()
    optimizer.param_groups[0].update(before)
    optimizer.step()


def test_four_dimensions_need_a_word() -> None:
    must = (
        r"have two or three dimensions, or be in a group with flatten=True \(a convolution's kernel"
        r" is one matrix\) or flatten=False \(a stack of matrices\)"
    )
    params = make_params((8, 3, 3, 3))
    with refuses("Muon", "param_groups[0]['params'][0]", must, r"\(8, 3, 3, 3\)", ValueError):
        fusedstep.Muon(params)
    for flatten in (True, False):
        fusedstep.Muon(params, flatten=flatten)
    fusedstep.Muon(make_params((8, 3, 3)))
    optimizer = stepped({"flatten": True}, (8, 3, 3, 3))
    optimizer.param_groups[0]["flatten"] = None
    snapshot = Snapshot(optimizer.param_groups[0]["params"], optimizer)
    with refuses("Muon", "params[0]", must, r"\(8, 3, 3, 3\)", ValueError):
        optimizer.step()
    snapshot.check()


def test_columns_that_memory_does_not_hold_as_columns_are_refused() -> None:
    param = torch.randn(3, 8, 2, 2).transpose(0, 1).requires_grad_()  # rows between columns
    must = "have one distance in memory between its columns where flatten=True"
    with refuses("Muon", "param_groups[0]['params'][0]", must, r"strides \(.*\)", ValueError):
        fusedstep.Muon([param], flatten=True)
    fusedstep.Muon([torch.randn(8, 3, 2, 2).to(memory_format=torch.channels_last)], flatten=True)


def test_a_refusal_comes_before_any_state_of_another_group() -> None:
    first, second = make_params((8, 4)), make_params((12, 4), seed=1)
    optimizer = fusedstep.Muon([{"params": first}, {"params": second}])
    optimizer.param_groups[1]["split_sizes"] = (8, 8)
    set_grads(first + second)
    snapshot = Snapshot(first + second, optimizer)
    where, must = "param_groups[1]['split_sizes']", r"sum to the 12 rows of params\[1\]"
    with refuses("Muon", where, must, r"\(8, 8\)", ValueError):
        optimizer.step()
    snapshot.check()
    assert not optimizer.state


def test_adamws_groups_do_not_read_them() -> None:
    matrix, vector = make_params((24, 8)), make_params((5,))
    groups = [{"params": matrix}, {"params": vector, "use_muon": False}]
    optimizer = fusedstep.Muon(groups, **QKV)
    set_grads(matrix + vector)
    optimizer.step()
    (other,) = make_params((3, 3, 3, 3))
    optimizer.add_param_group({"params": [other], "use_muon": False, "num_heads": "any"})


# --- checkpoints and copies -----------------------------------------------------------------------


def test_a_checkpoint_carries_them() -> None:
    first = stepped(QKV, (24, 8), (24, 16))
    params = first.param_groups[0]["params"]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = fusedstep.Muon(copies(params), lr=0.5)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert {key: second.param_groups[0][key] for key in QKV} == QKV
    for seed in range(1, 4):
        step(first, seed)
        step(second, seed)
    assert_same_run(second, first)


@pytest.mark.parametrize("source", ["an older version", "torch"])
def test_a_checkpoint_without_them_leaves_them(source: str) -> None:
    first = stepped(QKV, (24, 8), (24, 16))
    params = first.param_groups[0]["params"]
    checkpoint = copy.deepcopy(first.state_dict())
    if source == "torch":
        other = torch.optim.Muon(copies(params), lr=0.05)
        other.load_state_dict(first.to_torch_state_dict())
        checkpoint = other.state_dict()
    for key in ENTRIES:
        checkpoint["param_groups"][0].pop(key, None)
    second = fusedstep.Muon([{"params": copies(params), **QKV}])
    second.load_state_dict(checkpoint)
    assert {key: second.param_groups[0][key] for key in QKV} == QKV
    for seed in range(1, 4):
        step(first, seed)
        step(second, seed)
    assert_same_run(second, first)


def test_torchs_checkpoint_is_without_them() -> None:
    optimizer = stepped(QKV, (24, 8))
    (group,) = optimizer.to_torch_state_dict()["param_groups"]
    assert not group.keys() & set(ENTRIES)
    assert optimizer.param_groups[0]["split_sizes"] == (16, 4, 4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue_on_their_own(copied: Callable[[Any], Any]) -> None:
    options = {"adjust_lr_fn": "spectral_unclamped", "split_sizes": (16, 8)}
    original = stepped(options, (24, 8), (2, 24, 4))
    twin = copied(original)
    for seed in range(1, 3):
        step(original, seed)
    for seed in range(1, 3):
        step(twin, seed)
    assert_same_run(twin, original)


def test_a_pickle_of_an_older_version_has_undivided_matrices() -> None:
    optimizer = stepped({}, (24, 8))
    state = optimizer.__getstate__()
    groups: list[dict[str, Any]] = copy.deepcopy(state["param_groups"])
    for entries in (*groups, state["defaults"]):
        for key in ENTRIES:
            del entries[key]
    again = fusedstep.Muon.__new__(fusedstep.Muon)
    again.__setstate__(state | {"param_groups": groups})
    assert [again.param_groups[0][key] for key in ENTRIES] == [None, None, None]
    params: list[Tensor] = groups[0]["params"]
    set_grads(params)
    again.step()
