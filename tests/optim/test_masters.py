"""Masters: the trajectory of float32 parameters whose forward copy is bfloat16, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.modes import forward_copy
from tests.support.optimizers import Kind, every_kind
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

SHAPES = [(300,), (), (0,), (66, 130)]


def both(kind: Kind, master: str) -> Iterator[tuple[list[Tensor], list[Tensor], int]]:
    """Steps of bfloat16 parameters and of float32 ones with the same gradients."""
    params = make_params(*SHAPES, dtype=torch.bfloat16)
    wide = [p.detach().float().requires_grad_() for p in params]
    ours = kind.ours(params, master=master, max_norm=1.0)
    exact = kind.ours(wide, max_norm=1.0)
    for step in range(6):
        set_grads(params, seed=step)
        for p, q in zip(params, wide, strict=True):
            q.grad_dtype = None
            q.grad = p.grad.clone()
        ours.step()
        exact.step()
        yield params, wide, step


@pytest.mark.parametrize("master", ["float32", "remainder"])
@every_kind
def test_trajectory_is_that_of_float32_parameters(kind: Kind, master: str) -> None:
    differs = False
    for params, wide, _ in both(kind, master):
        for p, q in zip(params, wide, strict=True):
            assert_same_bits(p.detach(), forward_copy(master, q))
            differs |= not torch.equal(p.detach().float(), q.detach())
    assert differs  # else bfloat16 alone would have done


@pytest.mark.parametrize("master", ["float32", "remainder"])
def test_updates_too_small_for_bfloat16_add_up(master: str) -> None:
    param = torch.ones(200, dtype=torch.bfloat16, requires_grad=True)
    plain = torch.ones(200, dtype=torch.bfloat16, requires_grad=True)
    optimizers = [
        fusedstep.SGD([param], lr=2.0**-12, master=master),
        fusedstep.SGD([plain], lr=2.0**-12),
    ]
    for one in (param, plain):
        one.grad = torch.ones_like(one)
    for _ in range(256):
        for optimizer in optimizers:
            optimizer.step()
    assert (param == 1 - 256 * 2.0**-12).all()
    assert (plain == 1).all()


def test_ties_are_rounded_away_from_zero_by_the_remainder_alone() -> None:
    for master, expected in (("float32", 1.0), ("remainder", 1 + 2.0**-7)):
        param = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
        param.grad = -torch.ones_like(param)
        fusedstep.SGD([param], lr=2.0**-8, master=master).step()
        assert (param == expected).all()


def test_what_is_written_from_outside_counts_with_a_remainder_and_not_with_a_copy() -> None:
    for master in ("float32", "remainder"):
        (param,) = make_params((100,), dtype=torch.bfloat16)
        (twin,) = copies([param])
        optimizers = [fusedstep.SGD([p], lr=1e-5, master=master) for p in (param, twin)]
        for optimizer, one in zip(optimizers, (param, twin), strict=True):
            one.grad = torch.ones_like(one)
            optimizer.step()
        with torch.no_grad():
            param.mul_(2)
        written = param.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        if master == "float32":
            assert_same_bits(param, twin)
        else:  # to one unit of the last bit: the 16 bits belong to what was there
            error = (param.detach().float() - written.float()).abs()
            assert (error <= written.float().abs() * 2.0**-7 + 1e-4).all()


def test_loading_weights_before_the_first_step_counts() -> None:
    """The master is made at the first step, not by the constructor: Adagrad's makes the sums."""
    for kind in (Kind("AdamW", {}), Kind("Adagrad", {})):
        (param,) = make_params((100,), dtype=torch.bfloat16)
        optimizer = kind.ours([param], master="float32", lr=0.0)
        with torch.no_grad():
            param.fill_(3.0)
        set_grads([param])
        optimizer.step()
        assert (param == 3).all()
        np.testing.assert_array_equal(optimizer.state[param]["master"].numpy(), 3)
