"""The moving average of the parameters: its numbers, read and swapped in."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize

import fusedstep
from tests.support.optimizers import Kind, every_kind
from tests.support.tensors import assert_same_bits, copies, make_params, name_of, set_grads


def stepped(steps: int = 2, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    params = make_params((300,), (), (4, 5), dtype=dtype)
    optimizer = fusedstep.AdamW(params, lr=0.1, **{"ema_decay": 0.9} | options)
    for step in range(steps):
        set_grads(params[:2], seed=step)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@every_kind
def test_is_that_of_torch(kind: Kind, dtype: torch.dtype) -> None:
    params = make_params((300,), (4, 5), dtype=dtype)
    decay = 0.75
    averages = torch.optim.swa_utils.AveragedModel(
        torch.nn.ParameterList(params),
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay),
    )
    averages.update_parameters(torch.nn.ParameterList(params))  # the first only copies
    optimizer = kind.ours(params, ema_decay=decay)
    for step in range(5):
        set_grads(params, seed=step)
        optimizer.step()
        averages.update_parameters(torch.nn.ParameterList(params))
    for ours, theirs in zip(optimizer.ema_parameters(), averages.parameters(), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs.detach())


def test_follows_the_master_where_there_is_one() -> None:
    """A bfloat16 parameter moves too little to be seen; its average does not stand still."""
    for master in ("float32", "remainder"):
        (param,) = make_params((100,), dtype=torch.bfloat16)
        start = param.detach().float()
        optimizer = fusedstep.SGD([param], lr=1e-6, master=master, ema_decay=0.5)
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert_same_bits(param.detach().float(), start)
        (average,) = optimizer.ema_parameters()
        moved = 0.5 * start + 0.5 * (start - 1e-6)
        torch.testing.assert_close(average, moved, rtol=0, atol=1e-9)


def test_parameters_that_never_stepped_stand_for_themselves() -> None:
    params, optimizer = stepped()
    averages = optimizer.ema_parameters()
    assert [a is p for a, p in zip(averages, params, strict=True)] == [False, False, True]
    assert averages[0] is optimizer.state[params[0]]["ema"]
    assert fusedstep.SGD(params, ema_decay=0.5).ema_parameters()[0] is params[0]


@pytest.mark.parametrize(
    "master", [None, "float32", "remainder", "correction"], ids=["none", "float32", "16", "8"]
)
def test_swapped_in_and_back(master: str | None) -> None:
    params, optimizer = stepped(master=master)
    before = [p.detach().clone() for p in params]
    state = copy.deepcopy([dict(optimizer.state[p]) for p in params[:2]])
    with optimizer.swap_ema():
        for param, average in zip(params, optimizer.ema_parameters(), strict=True):
            assert_same_bits(param.detach(), average.detach().to(param.dtype))
        assert not torch.equal(params[0], before[0])
    for param, values in zip(params, before, strict=True):
        assert_same_bits(param.detach(), values)
    for param, entries in zip(params, state, strict=False):
        for name, value in entries.items():
            assert_same_bits(optimizer.state[param][name], value, name)
    set_grads(params)
    optimizer.step()


def test_an_error_inside_swaps_back_too() -> None:
    params, optimizer = stepped()
    before = [p.detach().clone() for p in params]
    with pytest.raises(KeyError), optimizer.swap_ema():
        raise KeyError
    for param, values in zip(params, before, strict=True):
        assert_same_bits(param.detach(), values)
    optimizer.step()


def test_no_step_and_no_second_swap_inside() -> None:
    params, optimizer = stepped()
    before = params[0].detach().clone()
    with optimizer.swap_ema():
        inside = params[0].detach().clone()
        for call in (optimizer.step, optimizer.swap_ema().__enter__, optimizer.state_dict):
            with pytest.raises(RuntimeError, match="AdamW: parameters must hold their own values"):
                call()
        assert_same_bits(params[0].detach(), inside)
        for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            set_grads(copied.param_groups[0]["params"])
            copied.step()  # parameters of its own, which are the averages
    assert_same_bits(params[0].detach(), before)
    optimizer.state_dict()


def test_casts_made_before_are_forgotten_on_entry_and_on_exit() -> None:
    """autocast casts a weight once in its context; parametrize.cached() computes it once."""
    torch.manual_seed(0)
    plain, odd = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    parametrize.register_parametrization(odd, "weight", torch.nn.Tanh())
    inputs = torch.ones(1, 3)
    contexts = {plain: lambda: torch.autocast("cpu", torch.bfloat16), odd: parametrize.cached}
    for model, context in contexts.items():
        optimizer = fusedstep.SGD(model.parameters(), lr=1.0, ema_decay=0.5)
        model(inputs).sum().backward()
        optimizer.step()
        separate = []
        for swap in (nullcontext, optimizer.swap_ema):
            with swap(), context():
                separate.append(model(inputs).detach())
        own, average = separate
        assert not torch.equal(own, average)
        with context():
            assert torch.equal(model(inputs), own)
            with optimizer.swap_ema():
                assert torch.equal(model(inputs), average)
            assert torch.equal(model(inputs), own)
        with context():  # nothing was computed before the block
            with optimizer.swap_ema():
                model(inputs)
            assert torch.equal(model(inputs), own)


def test_entering_that_fails_half_way_restores_what_was_written() -> None:
    params, optimizer = stepped(dtype=torch.float32)
    before = [p.detach().clone() for p in params]
    optimizer.state[params[1]]["ema"] = optimizer.state[params[1]]["ema"].to("meta")
    with pytest.raises(NotImplementedError, match="meta"), optimizer.swap_ema():
        raise AssertionError
    optimizer.state[params[1]]["ema"] = torch.zeros(3)
    message = r"AdamW: state of params\[1\]\['ema'\] must have its parameter's shape"
    with pytest.raises(ValueError, match=message), optimizer.swap_ema():
        raise AssertionError
    for param, values in zip(params, before, strict=True):
        assert_same_bits(param.detach(), values)
    del optimizer.state[params[1]]["ema"]
    optimizer.step()


def test_parameters_in_two_precisions_are_refused() -> None:
    params, optimizer = stepped()
    params[1]._fp_param = params[1].data  # as DistributedDataParallel(mixed_precision=...) does
    message = r"AdamW: params\[1\] must not be cast by DistributedDataParallel"
    with pytest.raises(ValueError, match=message), optimizer.swap_ema():
        raise AssertionError


def test_needs_a_decay() -> None:
    optimizer = fusedstep.AdamW(make_params((3,)))
    message = "AdamW: ema_decay must be a number, got None"
    with pytest.raises(ValueError, match=message):
        optimizer.ema_parameters()
    with pytest.raises(ValueError, match=message), optimizer.swap_ema():
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@every_kind
def test_is_that_of_torch_where_gradients_are_missing(kind: Kind, dtype: torch.dtype) -> None:
    """Of an expert that no token reaches, of a parameter that is frozen, and of all at once."""
    params = make_params((300,), (4, 5), (7,), dtype=dtype)
    model, decay = torch.nn.ParameterList(params), 0.75
    averages = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    )
    averages.update_parameters(model)  # the first only copies
    optimizer = kind.ours(params, ema_decay=decay, max_norm=1.0)
    for step in range(30):
        set_grads(params, seed=step)
        for i, param in enumerate(params):
            if step >= 10 if i == 0 else step % 3 == i or step in (20, 21):
                param.grad = None
        before = [p._version for p in params if p.grad is None]
        optimizer.step()
        assert before == [p._version for p in params if p.grad is None]  # graphs stay valid
        averages.update_parameters(model)
    assert (params[0] - optimizer.ema_parameters()[0]).abs().max() < 0.01
    for ours, theirs in zip(optimizer.ema_parameters(), averages.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach())


def test_average_of_a_matrix_of_muon_that_is_frozen_arrives() -> None:
    params = make_params((8, 5), (5,))
    groups = [{"params": params[:1]}, {"params": params[1:], "use_muon": False}]
    optimizer = fusedstep.Muon(groups, lr=0.1, ema_decay=0.5)
    set_grads(params)
    optimizer.step()
    for step in range(30):
        params[0].grad = None
        if step == 15:
            params[1].grad = None
        optimizer.step()
    for param, average in zip(params, optimizer.ema_parameters(), strict=True):
        torch.testing.assert_close(average, param.detach(), rtol=0, atol=1e-4)


def test_a_skipped_step_leaves_the_averages_of_all_parameters() -> None:
    params, optimizer = stepped(nonfinite="skip")
    params[0].grad = None
    for bad in (torch.nan, torch.inf, 1.0):
        before = [average.clone() for average in optimizer.ema_parameters()]
        params[1].grad.fill_(bad)
        if bad == 1.0:
            optimizer.found_inf = torch.ones(())
        optimizer.step()
        for average, old in zip(optimizer.ema_parameters(), before, strict=True):
            assert_same_bits(average, old)
    del optimizer.found_inf
    optimizer.step()
    assert not torch.equal(optimizer.ema_parameters()[0], before[0])


def test_an_average_begins_with_the_first_step_after_a_checkpoint_without() -> None:
    params, _ = stepped(ema_decay=None)
    plain = fusedstep.AdamW(params)
    set_grads(params)
    plain.step()
    others = copies(params)
    averaging = fusedstep.AdamW(others, ema_decay=0.0)
    averaging.load_state_dict(plain.state_dict())
    assert averaging.ema_parameters()[0] is others[0]
    set_grads(others, seed=1)
    averaging.step()
    assert_same_bits(averaging.ema_parameters()[0], others[0].detach().float())
