"""Modes of Muon: state of fewer bits, masters, an average, next to AdamW's in other groups."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.reference.quantize import round_to_24_bits_stochastically, split_in_24
from tests.reference.random import random16, random_array
from tests.support.modes import forward_copy
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

HALF = torch.bfloat16
MATRICES = [(8, 16), (33, 17), (8, 16), (1, 5)]
VECTORS = [(300,), (), (4, 5)]


@pytest.mark.parametrize("master", ["float32", "remainder"])
def test_a_master_has_the_trajectory_of_float32_matrices(master: str) -> None:
    params = make_params(*MATRICES, dtype=HALF)
    wide = [p.detach().float().requires_grad_() for p in params]
    ours = fusedstep.Muon(params, lr=0.02, max_norm=1.0, master=master)
    exact = fusedstep.Muon(wide, lr=0.02, max_norm=1.0)
    for step in range(4):
        set_grads(params, seed=step)
        for p, q in zip(params, wide, strict=True):
            q.grad_dtype = None
            q.grad = p.grad.clone()
        ours.step()
        exact.step()
        for p, q in zip(params, wide, strict=True):
            assert_same_bits(p.detach(), forward_copy(master, q))
            assert_same_bits(
                ours.state[p]["momentum_buffer"], exact.state[q]["momentum_buffer"], "momentum"
            )


@pytest.mark.parametrize("state_dtype", [None, HALF, "int8"], ids=["float32", "bfloat16", "int8"])
def test_a_correction_is_rounded_by_the_count_after_the_first_pass(state_dtype: Any) -> None:
    """Momentum and directions do not depend on the parameters: a float32 master shows the rest."""
    params = make_params(*MATRICES, dtype=HALF)
    ours = fusedstep.Muon(params, lr=1e-3, master="correction", state_dtype=state_dtype, seed=3)
    exact = fusedstep.Muon(
        copies(params), lr=1e-3, master="float32", state_dtype=state_dtype, seed=3
    )
    for step in range(3):
        twins = exact.param_groups[0]["params"]
        for optimizer in (ours, exact):
            set_grads(optimizer.param_groups[0]["params"], seed=step)
            optimizer.step()
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            state = ours.state[p]
            assert float(state["step"]) == step + 1
            random = random16(3, random_array(i, 0), step + 2, 0, p.numel()) & 0xFF
            master = exact.state[q]["master"]
            value = round_to_24_bits_stochastically(master.flatten().numpy(), random)
            nearest, correction = split_in_24(value)
            assert_same_bits(p.detach().view(torch.int16).flatten(),
                             torch.from_numpy(nearest).view(torch.int16))  # fmt: skip
            assert_same_bits(state["correction"].flatten(), torch.from_numpy(correction))
            master.copy_(torch.from_numpy(value).view(master.shape))  # where both go on from
            q.data.copy_(master)


@pytest.mark.parametrize("options", [{}, {"master": "remainder"}], ids=["plain", "remainder"])
def test_an_average_follows_the_matrices(options: dict[str, Any]) -> None:
    params = make_params(*MATRICES, dtype=HALF if options else torch.float32)
    optimizer = fusedstep.Muon(params, lr=0.02, ema_decay=0.75, **options)
    expected = [p.detach().float().clone() for p in params]
    for step in range(3):
        set_grads(params, seed=step)
        optimizer.step()
        for average, param in zip(expected, params, strict=True):
            average.lerp_(param.detach().float(), 0.25)
    for actual, average in zip(optimizer.ema_parameters(), expected, strict=True):
        torch.testing.assert_close(actual, average, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("state_dtype", [HALF, "int8"], ids=["bfloat16", "int8"])
def test_momentum_of_fewer_bits(state_dtype: Any) -> None:
    params = make_params(*MATRICES)
    ours = fusedstep.Muon(params, state_dtype=state_dtype)
    plain = fusedstep.Muon(copies(params))
    for step in range(3):
        for optimizer in (ours, plain):
            set_grads(optimizer.param_groups[0]["params"], seed=step)
            optimizer.step()
    state = ours.state[params[0]]
    assert state["momentum_buffer"].dtype == (torch.int8 if state_dtype == "int8" else HALF)
    assert float(state["step"]) == 3
    exported = ours.to_torch_state_dict()["state"]
    for i, q in enumerate(plain.param_groups[0]["params"]):
        expected = plain.state[q]["momentum_buffer"]
        torch.testing.assert_close(exported[i]["momentum_buffer"], expected, rtol=0.1, atol=0.01)


def groups(matrices: list[Tensor], vectors: list[Tensor]) -> list[dict[str, Any]]:
    """AdamW's first: positions, which are a key of the random numbers, as where it is alone."""
    return [
        {"params": vectors, "use_muon": False, "lr": 0.01, "stochastic_rounding": True},
        {"params": matrices, "master": "remainder"},
    ]


def test_adamws_groups_have_the_bits_of_adamw() -> None:
    matrices, vectors = make_params(*MATRICES, dtype=HALF), make_params(*VECTORS, dtype=HALF)
    twins = copies(vectors)
    ours = fusedstep.Muon(groups(matrices, vectors), state_dtype="int8", ema_decay=0.9, seed=7)
    adamw = fusedstep.AdamW(
        twins, lr=0.01, state_dtype="int8", ema_decay=0.9, seed=7, stochastic_rounding=True
    )
    for step in range(3):
        set_grads([*vectors, *matrices], seed=step)
        for p, q in zip(vectors, twins, strict=True):
            q.grad = p.grad.clone()
        ours.step()
        adamw.step()
    for p, q in zip(vectors, twins, strict=True):
        assert_same_bits(p, q)
        for name, value in adamw.state[q].items():
            assert_same_bits(ours.state[p][name], value, name)


def test_a_checkpoint_continues_bit_for_bit() -> None:
    runs = []
    for through_a_checkpoint in (False, True):
        matrices, vectors = make_params(*MATRICES, dtype=HALF), make_params(*VECTORS, dtype=HALF)
        given = groups(matrices, vectors)
        optimizer = fusedstep.Muon(copy.copy(given), state_dtype="int8", ema_decay=0.9)
        for step in range(4):
            set_grads([*vectors, *matrices], seed=step)
            optimizer.step()
            if through_a_checkpoint and step == 1:
                saved = copy.deepcopy(optimizer.state_dict())
                again = groups(matrices, vectors)
                optimizer = fusedstep.Muon(again, state_dtype="int8", ema_decay=0.9)
                optimizer.load_state_dict(saved)
        states = [optimizer.state[p] | {"param": p.detach()} for p in (*vectors, *matrices)]
        runs.append(states)
    for one, other in zip(*runs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_same_bits(value, other[name], name)


def test_another_master_in_the_state_is_seen() -> None:
    params = make_params((8, 16), dtype=HALF)
    optimizer = fusedstep.Muon(params, lr=0.1, master="float32")
    set_grads(params)
    optimizer.step()
    old = optimizer.state[params[0]]["master"]
    kept, new = old.clone(), old * (1 + 2.0**-20)
    optimizer.state[params[0]]["master"] = new
    optimizer.step()
    assert_same_bits(old, kept)
    assert_same_bits(params[0].detach(), new.bfloat16())
    assert not torch.equal(new.bfloat16(), kept.bfloat16())


def test_stochastic_rounding_is_for_adamws_groups() -> None:
    for options, group in (
        ({"stochastic_rounding": True}, {}),
        ({}, {"stochastic_rounding": True}),
    ):
        with refuses(
            "Muon", "param_groups[0]['stochastic_rounding']", "be False where use_muon", "True",
            ValueError,
        ):  # fmt: skip
            fusedstep.Muon([{"params": make_params((8, 16), dtype=HALF), **group}], **options)
