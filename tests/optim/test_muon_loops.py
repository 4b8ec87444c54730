"""Muon in a training loop: skipped steps, GradScaler, checkpoints, copies, schedulers, training."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import fusedstep
from tests.support.newton_schulz import exact
from tests.support.optimizers import assert_same_run, params_of
from tests.support.refusals import Snapshot
from tests.support.tensors import DTYPES, assert_same_bits, copies, make_params, name_of, set_grads

MATRICES = [(8, 16), (16, 8), (8, 16), (3, 3)]
REST = [(16,), (40, 8), ()]


def muon_over(params: list[Tensor], **options: Any) -> fusedstep.Muon:
    """Muon for the first parameters, AdamW for those of REST at the end."""
    matrices, rest = params[: -len(REST)], params[-len(REST) :]
    groups = [{"params": matrices}, {"params": rest, "use_muon": False, "lr": 0.01}]
    return fusedstep.Muon(groups, **{"lr": 0.02} | options)


def step(optimizer: torch.optim.Optimizer, seed: int, scale: float = 1.0) -> None:
    """One step along gradients that are the same for the same seed."""
    set_grads(params_of(optimizer), seed=seed, scale=scale)
    optimizer.step()


@pytest.fixture
def torchs_products_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they are in bfloat16, and their errors would hide others."""
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", exact)


# --- steps that are left out ----------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 4])  # a matrix, or one of AdamW's
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
def test_a_skipped_step_leaves_no_trace(
    first: bool, value: float, where: int, device: torch.device
) -> None:
    params = make_params(*MATRICES, *REST, device=device)
    twins = copies(params)
    skipping = muon_over(params, nonfinite="skip", max_norm=1.0)
    oracle = muon_over(twins, nonfinite="skip", max_norm=1.0)
    for seed in range(3):
        if seed == (0 if first else 1):
            set_grads(params, seed=seed + 50)
            params[where].grad.flatten()[0] = value
            before = [param.detach().clone() for param in params]
            skipping.step()
            assert not skipping.grad_norm.isfinite()
            for param, old in zip(params, before, strict=True):
                assert_same_bits(param, old, "a parameter that was to stay")
        step(skipping, seed)
        step(oracle, seed)
    assert_same_run(skipping, oracle)


def test_an_error_changes_nothing() -> None:
    params = make_params(*MATRICES, *REST)
    optimizer = muon_over(params, nonfinite="error")
    step(optimizer, 0)
    set_grads(params, seed=1)
    params[1].grad[0, 0] = math.nan
    before = copy.deepcopy((params, list(optimizer.state.values())))
    with pytest.raises(RuntimeError, match="Muon: the gradients' norm must be finite"):
        optimizer.step()
    for param, old in zip(params, before[0], strict=True):
        assert_same_bits(param, old)
    for state, old in zip(optimizer.state.values(), before[1], strict=True):
        for name, value in state.items():
            assert_same_bits(value, old[name], name)


def test_nan_propagates_into_everything_that_is_clipped() -> None:
    params = make_params(*MATRICES, *REST)
    optimizer = muon_over(params, max_norm=1.0)
    set_grads(params)
    params[0].grad[0, 0] = math.nan
    optimizer.step()
    assert all(param.isnan().all() for param in params)


def test_found_inf_and_grad_scale_are_read_where_they_are(device: torch.device) -> None:
    params = make_params(*MATRICES, *REST, device=device)
    twins = copies(params)
    scaled, oracle = muon_over(params, max_norm=1.0), muon_over(twins, max_norm=1.0)
    scaled.grad_scale = torch.tensor(1024.0, device=device)
    scaled.found_inf = torch.tensor(0.0, device=device)
    for seed in range(3):
        step(scaled, seed, scale=1024.0)
        step(oracle, seed)
        scaled.found_inf.fill_(1.0)
        step(scaled, seed + 50, scale=1024.0)  # is left out
        scaled.found_inf.fill_(0.0)
    for p, q in zip(params, twins, strict=True):
        assert_same_bits(p, q)


def test_a_real_grad_scaler() -> None:
    def run(scaler: torch.amp.GradScaler, overflow: bool) -> fusedstep.Muon:
        params = make_params(*MATRICES, *REST)
        optimizer = muon_over(params, max_norm=0.5)
        for i in range(4):
            optimizer.zero_grad()
            loss = sum((param * (i + 1)).square().sum() for param in params)
            if overflow and i == 2:
                scaler.scale(loss * math.inf).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                loss = sum((param * (i + 1)).square().sum() for param in params)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return optimizer

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled = run(scaler, overflow=True)
    assert scaler.get_scale() == 2.0**9
    plain = run(torch.amp.GradScaler("cpu", enabled=False), overflow=False)
    assert_same_run(scaled, plain)


# --- checkpoints and copies -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_checkpoint_continues_bit_for_bit(dtype: torch.dtype) -> None:
    params = make_params(*MATRICES, *REST, dtype=dtype)
    first = muon_over(params, max_norm=1.0)
    for seed in range(2):
        step(first, seed)
    twins = copies(params)
    second = muon_over(twins, max_norm=1.0, lr=0.5)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    for seed in range(2, 4):
        step(first, seed)
        step(second, seed)
    assert_same_run(second, first)


def test_the_direction_is_not_part_of_the_state() -> None:
    params = make_params(*MATRICES, *REST)
    optimizer = muon_over(params)
    step(optimizer, 0)
    entries = [set(state) for state in optimizer.state_dict()["state"].values()]
    assert entries[: len(MATRICES)] == [{"momentum_buffer"}] * len(MATRICES)
    assert entries[len(MATRICES) :] == [{"step", "exp_avg", "exp_avg_sq"}] * len(REST)


@pytest.mark.parametrize("ours_first", [True, False])
def test_checkpoints_are_exchanged_with_torch(
    ours_first: bool, torchs_products_are_exact: None
) -> None:
    kinds = [fusedstep.Muon, torch.optim.Muon]
    begin, end = kinds if ours_first else reversed(kinds)
    params = make_params(*MATRICES, dtype=torch.float64)
    before = begin(params, lr=0.05, momentum=0.8)
    for seed in range(3):
        step(before, seed)
    twins = copies(params)
    after = end(twins)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert after.param_groups[0]["momentum"] == 0.8
    for seed in range(3, 6):
        step(before, seed)
        step(after, seed)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)  # ours are in float32


def test_loaded_groups_without_adamws_newer_arguments_are_completed() -> None:
    params = make_params(*MATRICES, *REST)
    optimizer = muon_over(params)
    step(optimizer, 0)
    checkpoint = optimizer.state_dict()
    for name in ("amsgrad", "betas", "eps", "decoupled_weight_decay"):
        del checkpoint["param_groups"][1][name]
    optimizer.load_state_dict(checkpoint)
    assert optimizer.param_groups[1]["eps"] == 1e-8  # AdamW's and not Muon's
    step(optimizer, 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue_on_their_own(copied: Callable[[Any], Any]) -> None:
    original = muon_over(make_params(*MATRICES, *REST), max_norm=1.0, nonfinite="skip")
    for seed in range(2):
        step(original, seed)
    twin = copied(original)
    assert twin.max_norm == 1.0
    for seed in range(2, 4):
        step(original, seed)
    for seed in range(2, 4):
        step(twin, seed)
    assert_same_run(twin, original)


def test_gradients_that_come_and_go() -> None:
    """A parameter whose gradient is missing stays as it is, with its state."""
    params = make_params(*MATRICES, *REST)
    optimizer = muon_over(params)
    present = [(0, 4), (1, 2, 5), (), (0, 1, 2, 3, 4, 5, 6), (6,), (3,)]
    for seed, chosen in enumerate(present):
        set_grads(params, seed=seed)
        absent = [p for i, p in enumerate(params) if i not in chosen]
        for param in absent:
            param.grad = None
        kept = Snapshot(absent, optimizer)
        moved = [params[i].detach().clone() for i in chosen]
        optimizer.step()
        kept.check()
        for i, old in zip(chosen, moved, strict=True):
            assert not torch.equal(params[i], old)


def test_parameters_may_move_in_memory() -> None:
    params = make_params(*MATRICES, *REST)
    twins = copies(params)
    moving, oracle = muon_over(params), muon_over(twins)
    for seed in range(4):
        for param in params:
            param.data = param.data.clone()
        step(moving, seed)
        step(oracle, seed)
    assert_same_run(moving, oracle)


def test_autograd_sees_that_a_matrix_was_written() -> None:
    (param,) = make_params((4, 4))
    loss = param.square().sum()
    set_grads([param])
    fusedstep.Muon([param]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- rates and training ---------------------------------------------------------------------------

SCHEDULERS: list[Callable[[Any], Any]] = [
    lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8),  # the momentum as well
    lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
]


@pytest.mark.parametrize("make", SCHEDULERS)
def test_schedulers_give_it_the_rates_that_they_give_torchs(
    make: Callable[[Any], Any], torchs_products_are_exact: None
) -> None:
    params = make_params(*MATRICES, dtype=torch.float64)
    twins = copies(params)
    optimizers = fusedstep.Muon(params, lr=0.05), torch.optim.Muon(twins, lr=0.05)
    for optimizer in optimizers:
        scheduler = make(optimizer)
        for seed in range(6):
            step(optimizer, seed)
            scheduler.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)  # ours are in float32


def test_it_trains_a_network() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )
        inputs = torch.randn(256, 8)
    targets = inputs.square().sum(1, keepdim=True) / 8
    hidden = [net[2].weight]
    rest = [param for param in net.parameters() if param is not net[2].weight]
    groups = [{"params": hidden}, {"params": rest, "use_muon": False, "lr": 0.01}]
    optimizer = fusedstep.Muon(groups, lr=0.02, max_norm=1.0)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (net(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
