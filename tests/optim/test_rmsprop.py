"""RMSprop against its NumPy reference bit for bit, against torch.optim.RMSprop within tolerance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import fusedstep
from tests.support.compare import (
    COMMON,
    cases,
    compare_with_reference,
    compare_with_torch,
)
from tests.support.refusals import refuses
from tests.support.shadow import Shadow
from tests.support.tensors import copies, make_params, set_grads

OPTIONS = COMMON | {
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True},
    "centered, momentum": {"centered": True, "momentum": 0.9},
    "short memory": {"alpha": 0.5, "eps": 0.1},
    "no memory": {"alpha": 0.0, "lr": 0.1},
    "all": {
        "centered": True, "momentum": 0.5, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1,
        "maximize": True, "max_norm": 0.7,
    },
}  # fmt: skip
every_case = cases(RMSprop=OPTIONS)


@every_case
def test_equals_the_reference_bit_for_bit(
    name: str, options: dict[str, Any], device: torch.device
) -> None:
    compare_with_reference(name, options, device)


@every_case
def test_is_close_to_torch(name: str, options: dict[str, Any]) -> None:
    compare_with_torch(name, options)


def test_is_close_to_torchs_foreach() -> None:
    """torch has no fused RMSprop."""
    compare_with_torch("RMSprop", OPTIONS["all"], "foreach")


@pytest.mark.parametrize(
    ("late", "new"),
    [
        ({"momentum": 0.9}, ["momentum_buffer"]),
        ({"centered": True}, ["grad_avg"]),
        ({"momentum": 0.9, "centered": True}, ["momentum_buffer", "grad_avg"]),
    ],
)
def test_momentum_and_centered_switched_on_later(late: dict[str, Any], new: list[str]) -> None:
    """torch raises KeyError; with zeros put in by hand it does what is expected of us."""
    ours = make_params((40,), (3, 4))
    theirs = copies(ours)
    shadow, reference = Shadow(fusedstep.RMSprop(ours)), torch.optim.RMSprop(theirs)
    for step in range(6):
        for params in (ours, theirs):
            set_grads(params, seed=step)
        if step == 2:
            shadow.optimizer.param_groups[0].update(late)
            reference.param_groups[0].update(late)
            with pytest.raises(KeyError):
                reference.step()
            for param in theirs:
                reference.state[param].update({name: torch.zeros_like(param) for name in new})
        shadow.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    assert set(new) <= shadow.optimizer.state[ours[0]].keys()


def test_a_variance_that_rounding_makes_negative_counts_as_0() -> None:
    """Constant gradients: torch takes the root of the negative number, which is NaN."""
    ours = make_params((1000,))
    theirs = copies(ours)
    options = {"centered": True, "alpha": 0.5, "lr": 1e-6}
    shadow = Shadow(fusedstep.RMSprop(ours, **options))
    reference = torch.optim.RMSprop(theirs, **options)
    set_grads(ours)
    set_grads(theirs)
    for _ in range(40):
        before = ours[0].detach().clone()
        shadow.step()
        reference.step()
    assert ours[0].isfinite().all()
    state = shadow.optimizer.state[ours[0]]
    negative = state["square_avg"] < state["grad_avg"] ** 2
    assert negative.any()
    step = 1e-6 * (ours[0].grad / 1e-8)
    torch.testing.assert_close(ours[0][negative], (before - step)[negative])
    assert theirs[0].isnan().any()
    ours[0].grad[3] = math.nan
    shadow.step()
    assert ours[0].isnan().nonzero().tolist() == [[3]]


def test_groups_have_no_entry_fused_as_those_of_torch_have_none() -> None:
    params = make_params((3,))
    expected = torch.optim.RMSprop(params).state_dict()["param_groups"][0].keys()
    for fused in (None, True, False):
        optimizer = fusedstep.RMSprop(params, fused=fused)
        assert optimizer.state_dict()["param_groups"][0].keys() == expected
    must = "select fusedstep's step .*"
    with refuses("RMSprop", "param_groups[1]", must, "fused=False, foreach=None", ValueError):
        fusedstep.RMSprop(params).add_param_group({"params": make_params((2,)), "fused": False})


def test_fused_and_foreach_together_are_refused_as_by_torch() -> None:
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        fusedstep.RMSprop(make_params((3,)), fused=True, foreach=True)
