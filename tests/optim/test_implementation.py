"""Whose step an optimizer takes, and groups and objects that other programs have made."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import fusedstep
from tests.support.optimizers import (
    NAMESAKES,
    OPTIMIZERS,
    Kind,
    assert_same_run,
    every_kind,
    every_namesake,
)
from tests.support.refusals import refuses
from tests.support.shadow import Shadow
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

SHAPES = (9, 2), (2, 3)
MUON = Kind("Muon", {"lr": 0.01, "weight_decay": 0.1})
ALL = pytest.mark.parametrize("kind", [*OPTIMIZERS, MUON], ids=lambda kind: kind.name)
TORCHS = [
    {"fused": False}, {"foreach": True}, {"fused": False, "foreach": False},
    {"fused": False, "foreach": True}, {"foreach": True, "fused": None},
]  # fmt: skip
OURS = [{"fused": True, "foreach": False}, {"fused": None, "foreach": None}, {"foreach": False}]


def in_groups(params: list[Tensor], *entries: dict[str, Any]) -> list[dict[str, Any]]:
    """A group for each parameter, with these entries; those of the last for the rest."""
    last = [entries[-1]] * (len(params) - len(entries))
    return [{"params": [p], **e} for p, e in zip(params, [*entries, *last], strict=True)]


def run(optimizer: Optimizer, steps: int = 3, seed: int = 0) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        set_grads(params, seed=seed + step)
        optimizer.step()


# --- groups that name an implementation -----------------------------------------------------------


@pytest.mark.parametrize("entries", TORCHS, ids=str)
@every_namesake
def test_groups_that_all_ask_for_torchs_step_get_it(kind: Kind, entries: dict[str, Any]) -> None:
    ours = make_params(*SHAPES)
    theirs = copies(ours)
    optimizer = kind.ours(iter(in_groups(ours, entries)))
    reference = kind.torchs(in_groups(theirs, entries))
    run(optimizer)
    run(reference)
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits(p, q, "a parameter")
    if kind.name != "Adagrad":  # torch 2.11's has no state for a group that is added
        optimizer.add_param_group({"params": make_params((4,))})  # takes the same step
        run(optimizer, 1)
    with refuses(kind.name, "max_norm", "be None where .*", "1.0", ValueError):
        kind.ours(in_groups(ours, entries), max_norm=1.0)


@pytest.mark.parametrize("entries", OURS, ids=str)
@every_kind
def test_groups_that_ask_for_our_step_get_it(kind: Kind, entries: dict[str, Any]) -> None:
    params = make_params(*SHAPES)
    shadow = Shadow(kind.ours(in_groups(params, entries), max_norm=1.0))
    for step in range(2):
        set_grads(params, seed=step)
        shadow.step()


@pytest.mark.parametrize("first", [*TORCHS, {}, *OURS], ids=str)
@every_namesake
def test_groups_that_differ_are_refused(kind: Kind, first: dict[str, Any]) -> None:
    torchs = first in TORCHS
    must = f"select {'torch' if torchs else 'fusedstep'}'s .*, as param_groups.0. does"
    for other in [{"fused": True}, {}] if torchs else TORCHS:
        got = f"fused={other.get('fused')}, foreach={other.get('foreach')}"
        with refuses(kind.name, "param_groups[1]", must, got, ValueError):
            kind.ours(in_groups(make_params(*SHAPES), first, other))


@pytest.mark.parametrize(
    ("argument", "group"),
    [
        ({"fused": True}, {"fused": False}),
        ({"fused": True}, {"foreach": True}),
        ({"fused": False}, {"fused": True}),
        ({"foreach": True}, {"fused": True}),
    ],
    ids=str,
)
@every_namesake
def test_groups_that_contradict_the_arguments_are_refused(
    kind: Kind, argument: dict[str, bool], group: dict[str, bool]
) -> None:
    must, got = "select .* step .*, as the whole optimizer does", "fused=.*, foreach=.*"
    with refuses(kind.name, "param_groups[0]", must, got, ValueError):
        kind.ours(in_groups(make_params((3,)), group), **argument)
    optimizer = kind.ours(make_params((3,)), **argument)
    with refuses(kind.name, "param_groups[1]", must, got, ValueError):
        optimizer.add_param_group({"params": make_params((2,)), **group})
    assert len(optimizer.param_groups) == 1


def test_a_group_cannot_ask_for_both_steps() -> None:
    for choice in ({"fused": True, "foreach": True}, {"fused": 1, "foreach": 1}):
        must = r"^AdamW: param_groups\[0\]\['foreach'\] must not be True with fused=True, got True$"
        with pytest.raises(ValueError, match=must):
            fusedstep.AdamW([{"params": make_params((3,))} | choice])


@pytest.mark.parametrize("kind", [OPTIMIZERS[-1], MUON], ids=lambda kind: kind.name)
def test_where_there_is_no_argument_a_group_cannot_ask_for_torchs_step(kind: Kind) -> None:
    must = "select fusedstep's step .*, as the whole optimizer does"
    with refuses(kind.name, "param_groups[0]", must, "fused=False, foreach=None", ValueError):
        kind.ours(in_groups(make_params(*SHAPES), {"fused": False}))
    run(kind.ours(in_groups(make_params(*SHAPES), {"fused": True, "foreach": False})))


@pytest.mark.parametrize("entries", [{}, *TORCHS], ids=str)
@every_namesake
def test_a_checkpoint_does_not_choose_the_step(kind: Kind, entries: dict[str, Any]) -> None:
    """`fused` and `foreach` stay as they are, where torch's classes take the checkpoint's."""
    saved = [make(in_groups(make_params(*SHAPES), entries)) for make in (kind.torchs, kind.ours)]
    for source in saved:
        run(source, 1)
        for chosen in ({}, {"fused": False}, {"foreach": True}):
            optimizer = kind.ours(in_groups(make_params(*SHAPES), {}), **chosen)
            before = list(map(implementation, optimizer.param_groups))
            optimizer.load_state_dict(source.state_dict())
            assert list(map(implementation, optimizer.param_groups)) == before
            run(optimizer, 1)


def implementation(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group.get(key, "absent") for key in ("fused", "foreach", "differentiable")}


# --- what else groups carry -----------------------------------------------------------------------


@ALL
def test_entries_that_we_do_not_know_are_carried(kind: Kind) -> None:
    """As Lightning, timm, torchtitan, DeepSpeed and schedulers put them there."""
    unknown = {
        "name": "decoder", "names": ["a"], "lr_mult": 0.5, "lr_scale": 1.0, "initial_lr": 0.3,
        "is_decay": True, "no_decay": [], "nested": {"deep": (1, torch.ones(2))}, "fsdp": None,
        3: "a key that is no name",
    }  # fmt: skip
    optimizer = kind.ours(in_groups(make_params(*SHAPES), unknown))
    run(optimizer)
    restored = kind.ours(in_groups(make_params(*SHAPES), unknown))
    restored.load_state_dict(optimizer.state_dict())
    for one in (optimizer, restored, copy.deepcopy(optimizer), roundtrip(optimizer)):
        for group in one.param_groups:
            assert unknown.keys() <= group.keys()
            assert all(group[key] == unknown[key] for key in unknown if key != "nested")


@pytest.mark.parametrize("option", ["fused", "foreach"])
@every_namesake
def test_fused_and_foreach_may_be_none_as_well(kind: Kind, option: str) -> None:
    must = "be True, False or None"
    with refuses(kind.name, option, must, "'x'", TypeError):
        kind.ours(make_params((3,)), **{option: "x"})
    with refuses(kind.name, f"param_groups[0]['{option}']", must, "'x'", TypeError):
        kind.ours(in_groups(make_params((3,)), {option: "x"}))
    assert kind.ours(make_params((3,)), fused=np.False_)._step_supports_amp_scaling is False


# --- groups do not grow ---------------------------------------------------------------------------


def roundtrip(optimizer: Optimizer) -> Optimizer:
    return pickle.loads(pickle.dumps(optimizer))


def reload(optimizer: Optimizer) -> Optimizer:
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer


def set_the_state(optimizer: Optimizer) -> Optimizer:
    made = type(optimizer).__new__(type(optimizer))
    made.__setstate__(optimizer.__getstate__())
    return made


def swap_in(optimizer: Optimizer) -> Optimizer:
    if hasattr(torch.optim, "swap_in_optimizer_params_and_state"):  # torch 2.14
        params = [p for group in optimizer.param_groups for p in group["params"]]
        named = {str(i): p.detach().clone() for i, p in enumerate(params)}
        state = optimizer.state_dict()
        with torch.optim.swap_in_optimizer_params_and_state(optimizer, named, state):
            pass
    return optimizer


COPIES: list[Callable[[Optimizer], Optimizer]] = [
    reload, copy.deepcopy, copy.copy, roundtrip, set_the_state, swap_in,
]  # fmt: skip


@pytest.mark.parametrize("copied", COPIES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("chosen", [{}, {"fused": False}], ids=str)
@ALL
def test_groups_defaults_and_state_have_the_same_keys_before_and_after(
    kind: Kind, chosen: dict[str, bool], copied: Callable[[Optimizer], Optimizer]
) -> None:
    """torch.optim.Optimizer.__setstate__ adds "differentiable" to the defaults of every class."""
    if chosen and kind not in NAMESAKES:
        pytest.skip("has no argument `fused`")
    optimizer = kind.ours(make_params(*SHAPES), **chosen)
    run(optimizer)
    before = keys(optimizer)
    for _ in range(2):
        after = copied(optimizer)
        assert keys(after) == before
        assert keys(optimizer) == before
        after.add_param_group({"params": make_params((2, 2))})
        added = after.param_groups.pop()
        assert added.keys() == after.param_groups[0].keys()
    run(after)
    assert keys(after) == before


def keys(optimizer: Optimizer) -> list[Any]:
    groups = [sorted(group) for group in optimizer.param_groups]
    states = [sorted(state) for state in optimizer.state.values()]
    return [sorted(optimizer.defaults), groups, states]


@pytest.mark.parametrize("kind", [*NAMESAKES, MUON], ids=lambda kind: kind.name)
def test_torchs_groups_get_no_keys_of_ours(kind: Kind) -> None:
    ours, theirs = kind.ours(make_params((3, 4))), kind.torchs(make_params((3, 4)))
    before = theirs.param_groups[0].keys() - {"params"}
    set_grads(ours.param_groups[0]["params"])
    ours.step()
    theirs.load_state_dict(ours.to_torch_state_dict())
    assert theirs.param_groups[0].keys() - {"params"} == before


@ALL
def test_a_distributed_checkpoint_loads_twice(kind: Kind, tmp_path: Any) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model = torch.nn.Linear(3, 4, bias=False)
    optimizer = kind.ours(model.parameters())
    run(optimizer)
    _, saved = get_state_dict(model, optimizer)
    dcp.save({"optim": saved}, checkpoint_id=tmp_path, no_dist=True)
    for _ in range(2):
        weights, loaded = get_state_dict(model, optimizer)
        dcp.load({"optim": loaded}, checkpoint_id=tmp_path, no_dist=True)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=loaded)
    run(optimizer)


# --- objects that our constructors have not made --------------------------------------------------


@ALL
def test_a_subclass_may_call_another_constructor(kind: Kind) -> None:
    """As some do that override __init__; what they get is the step with the default options."""
    ours = getattr(fusedstep, kind.name)
    options = {"momentum": 0.5} if kind.name in ("RMSprop", "SGD") else {}
    params = make_params(*SHAPES)
    expected = ours(copies(params), lr=0.1, **options)

    class Own(ours):  # type: ignore[valid-type]
        def __init__(self, params: list[Tensor]) -> None:
            if kind in NAMESAKES:
                getattr(torch.optim, kind.name).__init__(self, params, lr=0.1, **options)
            else:
                Optimizer.__init__(self, params, dict(expected.defaults))

    optimizer = Own(params)
    run(optimizer)
    run(expected)
    assert_same_run(optimizer, expected)
    assert optimizer.options == expected.options
    assert optimizer._step_supports_amp_scaling


@every_namesake
def test_the_attributes_of_an_optimizer_of_torch(kind: Kind) -> None:
    for chosen, native in (({}, True), ({"foreach": True}, False)):
        theirs = kind.torchs(make_params(*SHAPES), **chosen)
        run(theirs)
        optimizer = Optimizer.__new__(getattr(fusedstep, kind.name))
        optimizer.__setstate__(copy.deepcopy(theirs).__getstate__())
        assert optimizer._step_supports_amp_scaling is native
        run(optimizer, seed=9)
        run(theirs, seed=9)
        for ours, other in zip(optimizer.param_groups, theirs.param_groups, strict=True):
            torch.testing.assert_close(ours["params"], other["params"])


@ALL
def test_a_wrapper_may_share_the_attributes(kind: Kind) -> None:
    params = make_params(*SHAPES)
    optimizer = kind.ours(params, max_norm=1.0)
    expected = kind.ours(copies(params), max_norm=1.0)
    shared = Optimizer.__new__(type(optimizer))
    shared.__dict__ = optimizer.__dict__
    run(optimizer, 1)
    run(shared, 1, seed=1)
    run(expected, 2)
    assert_same_run(optimizer, expected)


def test_every_name_of_torch_may_be_replaced_by_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users do who want all code to use them: none of ours looks its namesake up again."""
    expected = uses_of_everything()
    for kind in [*NAMESAKES, MUON]:
        monkeypatch.setattr(torch.optim, kind.name, getattr(fusedstep, kind.name))
    for module, names in (
        (torch.nn.utils, ("clip_grad_norm_", "get_total_norm")), (torch.linalg, ("pinv", "lstsq")),
    ):  # fmt: skip
        for name in names:
            monkeypatch.setattr(module, name, getattr(fusedstep, name))
    monkeypatch.setattr(torch, "pinverse", fusedstep.pinv)
    actual = uses_of_everything()
    for i, (p, q) in enumerate(zip(actual, expected, strict=True)):
        assert_same_bits(p, q, f"result {i}")


def uses_of_everything() -> list[Tensor]:
    results: list[Tensor] = []
    for kind in [*OPTIMIZERS, MUON]:
        params = make_params(*SHAPES)
        optimizer = kind.ours(params)
        schedule = fusedstep.schedules.Scheduler(optimizer, lambda step: 0.1 / (1 + step))
        run(optimizer)
        schedule.step()
        optimizer.load_state_dict(optimizer.to_torch_state_dict())
        run(copy.deepcopy(optimizer))
        run(roundtrip(optimizer))
        run(optimizer)
        results += [*params, fusedstep.clip_grad_norm_(params, 0.5)]
        results.append(fusedstep.get_total_norm([p.grad for p in params]))
    matrix = torch.linspace(-1, 1, 12).reshape(4, 3)
    for dtype in (torch.float32, torch.float64, torch.complex64):
        A, B = matrix.to(dtype), torch.ones(4, 2, dtype=dtype)
        solved = fusedstep.pinv(A), fusedstep.lstsq(A, B)
        results += [torch.view_as_real(x) if x.is_complex() else x for x in solved]
    return results


# --- inside a compiled function -------------------------------------------------------------------


def whole_life(kind: Kind) -> Tensor:
    """Constructs, steps, saves, restores, copies; returns the parameter."""
    (param,) = make_params((3, 4))
    set_grads([param])
    optimizer = kind.ours([param], max_norm=1.0)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.max_norm = 0.5
    optimizer.load_state_dict(saved)
    optimizer.add_param_group({"params": make_params((2, 2))})
    optimizer.step()
    made = Optimizer.__new__(type(optimizer))
    made.__setstate__(optimizer.__getstate__())
    made.step()
    restored = roundtrip(copy.deepcopy(made))
    (param,) = restored.param_groups[0]["params"]
    set_grads([param])
    restored.step()
    return param


@cache
def dynamo_constructs_subclasses() -> bool:
    """Of torch's optimizers; that of torch 2.11 does not, whatever they are."""

    class Subclass(torch.optim.SGD):
        def __init__(self, params: list[Tensor]) -> None:
            torch._dynamo.graph_break()
            super().__init__(params)

    torch._dynamo.reset()
    try:
        torch.compile(lambda: Subclass(make_params((4,))), backend="eager")()
    except Exception:  # of whatever type: it is dynamo that fails
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
@ALL
def test_a_compiled_function_may_do_everything(kind: Kind, nested: bool) -> None:
    """By graph breaks, as with torch's classes."""
    if nested and not hasattr(torch._dynamo.config, "nested_graph_breaks"):
        pytest.skip("this torch has one kind of graph breaks")
    if not dynamo_constructs_subclasses():
        pytest.skip("this torch's dynamo constructs no subclass of an optimizer")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(nested_graph_breaks=True) if nested else nullcontext():
        actual = torch.compile(whole_life, backend="eager")(kind)
    assert_same_bits(actual, whole_life(kind))
