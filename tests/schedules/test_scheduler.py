"""Scheduler: sets a schedule's rates on any torch optimizer, resumes, fits torch's schedulers."""

import copy
import functools
import io
import math
import pickle
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

import fusedstep
from fusedstep.schedules import Scheduler, constant, piecewise_constant, warmup_cosine
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

COSINE = functools.partial(warmup_cosine, max_lr=0.1, min_lr=0.01, warmup_steps=3, max_steps=9)
STAIRS = functools.partial(piecewise_constant, boundaries=[4], values=[0.2, 0.05])
OPTIMIZERS = [torch.optim.SGD, torch.optim.Adagrad, torch.optim.AdamW, fusedstep.AdamW]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def two_groups(kind=fusedstep.AdamW, rates=(0.5, 0.5), params=None):
    first, second = params or make_params((3, 4), (5,))
    return kind([{"params": [p], "lr": lr} for p, lr in zip((first, second), rates, strict=True)])


def all_params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer, scheduler, steps):
    """Steps with gradients that follow from the step; the rates of each, by group."""
    rates = []
    for _ in range(steps):
        set_grads(all_params(optimizer), scheduler.last_epoch)
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_group_gets_the_schedules_rate(kind):
    optimizer = two_groups(kind)
    scheduler = Scheduler(optimizer, COSINE)
    assert train(optimizer, scheduler, 12) == [[COSINE(step)] * 2 for step in range(12)]
    assert scheduler.last_epoch == 12
    assert scheduler.get_last_lr() == [COSINE(12)] * 2
    assert {type(group["lr"]) for group in optimizer.param_groups} == {float}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_rate_is_written_in_place_and_never_handed_out(dtype):
    tensors = [torch.tensor(0.5, dtype=dtype) for _ in range(2)]
    optimizer = two_groups(rates=tensors)
    scheduler = Scheduler(optimizer, [COSINE, STAIRS])
    for step in range(6):
        for group, tensor, schedule in zip(
            optimizer.param_groups, tensors, (COSINE, STAIRS), strict=True
        ):
            assert group["lr"] is tensor
            assert_same_bits(tensor, torch.tensor(schedule(step), dtype=dtype))
        scheduler.get_last_lr()[0].fill_(7.0)
        train(optimizer, scheduler, 1)


def test_each_group_may_have_its_own_schedule():
    optimizer = two_groups(rates=(0.1, 0.2))
    rates = train(optimizer, Scheduler(optimizer, (COSINE, STAIRS)), 6)
    assert rates == [[COSINE(step), STAIRS(step)] for step in range(6)]


def test_one_schedule_also_holds_for_a_group_added_later():
    optimizer = torch.optim.SGD(make_params((2,)), lr=0.1)
    scheduler = Scheduler(optimizer, COSINE)
    train(optimizer, scheduler, 2)
    optimizer.add_param_group({"params": make_params((3,)), "lr": 5.0})
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [COSINE(3)] * 2


def test_training_is_that_of_torchs_lambda_lr_bit_for_bit():
    params = make_params((3, 4), (5,))
    ours, theirs = (two_groups(rates=(1.0, 1.0), params=p) for p in (params, copies(params)))
    rates = train(ours, Scheduler(ours, COSINE), 12)
    assert rates == train(theirs, lr_scheduler.LambdaLR(theirs, COSINE), 12)
    for mine, other in zip(all_params(ours), all_params(theirs), strict=True):
        assert_same_bits(mine, other)


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("schedule", [COSINE, [COSINE, lambda step: 0.1 / (1 + step)]])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(schedule, tensor):
    rate = torch.tensor(0.5) if tensor else 0.5
    params = make_params((3, 4), (5,))
    interrupted = copies(params)
    whole = two_groups(rates=(rate, rate), params=params)
    expected = train(whole, Scheduler(whole, schedule), 12)

    first = two_groups(rates=(rate, rate), params=interrupted)
    scheduler, file = Scheduler(first, schedule), io.BytesIO()
    rates = train(first, scheduler, 5)
    torch.save({"optimizer": first.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)  # no schedule in it: code need not be trusted

    second = two_groups(rates=(rate, rate), params=interrupted)
    resumed = Scheduler(second, schedule)
    second.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["scheduler"])
    assert resumed.get_last_lr() == scheduler.get_last_lr()
    assert rates + train(second, resumed, 7) == expected
    for mine, other in zip(interrupted, params, strict=True):
        assert_same_bits(mine, other)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["copy", "pickle"],
)
def test_a_copy_and_a_pickle_continue_on_their_own(duplicate):
    optimizer = two_groups()
    scheduler = Scheduler(optimizer, COSINE)
    train(optimizer, scheduler, 4)
    twin, its_scheduler = duplicate((optimizer, scheduler))
    assert its_scheduler.optimizer is twin
    rates = train(twin, its_scheduler, 5)
    assert scheduler.last_epoch == 4
    assert rates == train(optimizer, scheduler, 5)
    for mine, other in zip(all_params(optimizer), all_params(twin), strict=True):
        assert_same_bits(mine, other)


def test_last_epoch_is_the_step_before_the_first():
    optimizer = two_groups()
    with pytest.raises(
        KeyError, match="initial_lr"
    ):  # torch's rule: only for an optimizer's resume
        Scheduler(optimizer, COSINE, last_epoch=4)
    Scheduler(optimizer, COSINE)
    scheduler = Scheduler(optimizer, COSINE, last_epoch=4)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (5, [COSINE(5)] * 2)


def test_in_a_sequence_each_schedule_starts_from_its_first_step():
    optimizer = two_groups()
    parts = [Scheduler(optimizer, STAIRS), Scheduler(optimizer, COSINE)]
    rates = train(optimizer, lr_scheduler.SequentialLR(optimizer, parts, [6]), 15)
    expected = [STAIRS(step) for step in range(6)] + [COSINE(step) for step in range(9)]
    assert rates == [[rate] * 2 for rate in expected]


def test_a_sequence_resumes():
    def make():
        optimizer = two_groups()
        parts = [lr_scheduler.LinearLR(optimizer, 0.5, 1, 3), Scheduler(optimizer, COSINE)]
        return optimizer, lr_scheduler.SequentialLR(optimizer, parts, [3])

    optimizer, scheduler = make()
    train(optimizer, scheduler, 5)
    second, resumed = make()
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert train(second, resumed, 6) == train(optimizer, scheduler, 6)


def test_in_a_chain_it_overwrites_what_stands_before_it():
    optimizer = two_groups()
    parts = [lr_scheduler.ExponentialLR(optimizer, 0.5), Scheduler(optimizer, COSINE)]
    chain = lr_scheduler.ChainedScheduler(parts, optimizer)
    for step in range(5):
        assert [group["lr"] for group in optimizer.param_groups] == [COSINE(step)] * 2
        optimizer.step()
        chain.step()


@pytest.mark.parametrize(
    ("schedule", "argument", "must", "got", "kind"),
    [
        (0.1, "schedule", "be a function of the step or a list of them", "float", TypeError),
        ([COSINE, 0.1], "schedule[1]", "be a function of the step", "float", TypeError),
        ([COSINE], "schedule", "have one function for each of 2 groups", "1", ValueError),
        ([COSINE] * 3, "schedule", "have one function for each of 2 groups", "3", ValueError),
        (lambda step: None, "schedule(0)", "be a number", "NoneType", TypeError),
        (lambda step: -0.1, "schedule(0)", "be 0 or more", "-0.1", ValueError),
        ([COSINE, lambda _: math.nan], "schedule[1](0)", "be 0 or more", "nan", ValueError),
        (lambda step: math.inf, "schedule(0)", "be finite", "inf", ValueError),
    ],
)
def test_a_refused_schedule_leaves_the_optimizer_as_it_was(schedule, argument, must, got, kind):
    optimizer = two_groups()
    before = copy.deepcopy(optimizer.state_dict())
    with refuses("Scheduler", argument, must, got, kind):
        Scheduler(optimizer, schedule)
    assert optimizer.state_dict() == before
    assert "step" not in vars(optimizer)  # torch's schedulers replace it by one that they watch


def test_one_schedule_for_groups_of_different_rates_is_refused():
    must = "be a list with one function per group where the groups' rates differ"
    got = r"one function for the rates \[0.1, 0.2\]"
    with refuses("Scheduler", "schedule", must, got, ValueError):
        Scheduler(two_groups(rates=(0.1, 0.2)), COSINE)


def test_what_is_no_optimizer_or_no_step_is_refused():
    with refuses("Scheduler", "optimizer", "be a torch.optim.Optimizer", "list", TypeError):
        Scheduler([], COSINE)
    with refuses("Scheduler", "last_epoch", "be at least -1", "-2", ValueError):
        Scheduler(two_groups(), COSINE, last_epoch=-2)


def test_a_rate_refused_in_the_run_changes_no_group():
    optimizer = two_groups()
    scheduler = Scheduler(optimizer, [COSINE, lambda step: 0.1 if step < 3 else math.nan])
    train(optimizer, scheduler, 2)
    optimizer.step()
    with refuses("Scheduler", "schedule[1](3)", "be 0 or more", "nan", ValueError):
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [COSINE(2), 0.1]


def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing():
    scheduler = Scheduler(two_groups(), [COSINE, STAIRS])
    before = copy.deepcopy(scheduler.state_dict())
    alone = torch.optim.SGD(make_params((2,)), lr=0.1)
    other = Scheduler(alone, functools.partial(constant, lr=0.1)).state_dict()
    with refuses(
        "Scheduler", "state_dict['_last_lr']", "have one rate for each of 2 groups", "1", ValueError
    ):
        scheduler.load_state_dict(other)
    with refuses(
        "Scheduler", "state_dict", "have 'last_epoch', as a scheduler's has", ".*", ValueError
    ):
        scheduler.load_state_dict(alone.state_dict())
    assert scheduler.state_dict() == before
