"""Stochastic rounding: by the seed alone, right in the mean, and for whatever is that small."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from fusedstep import _C
from fusedstep.optim.row_blocks import Row, list_rows
from fusedstep.optim.state import Role
from tests.support.op_arguments import UNCLIPPED
from tests.support.optimizers import OPTIMIZERS
from tests.support.storage_forms import FORMS as STORED
from tests.support.storage_forms import Form, StoredTable
from tests.support.tensors import assert_same_bits, make_params, set_grads

SIZE = 128 * 512


def rounded(seed: int, **options: Any) -> list[Tensor]:
    """Parameters and states after three steps."""
    params = make_params((300,), (70, 30), dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, lr=1e-3, seed=seed, **options)
    for step in range(3):
        set_grads(params, seed=step)
        optimizer.step()
    entries = [v for p in params for k, v in optimizer.state[p].items() if k != "step"]
    return [p.detach() for p in params] + entries


SEEDS = [0, 1, 2**32, 2**63, 2**64 - 1]
FORMS = [
    {"stochastic_rounding": True}, {"master": "correction"},
    {"state_dtype": torch.bfloat16}, {"state_dtype": "int8"},
]  # fmt: skip


@pytest.mark.parametrize("options", FORMS, ids=["parameters", "correction", "bfloat16", "int8"])
def test_the_seed_makes_the_numbers(options: dict[str, Any]) -> None:
    runs = {seed: rounded(seed, **options) for seed in SEEDS}
    for a, b in zip(runs[0], rounded(0, **options), strict=True):
        assert_same_bits(a, b)
    for i, one in enumerate(SEEDS):
        for other in SEEDS[:i]:  # all 64 bits of it
            pairs = zip(runs[one], runs[other], strict=True)
            assert any(not torch.equal(a, b) for a, b in pairs), (one, other)


@pytest.mark.parametrize("form", [form for form in STORED if form.rounds], ids=str)
def test_parts_of_a_tensor_round_as_the_whole(form: Form) -> None:
    """Also those that begin with the second of two elements that share a random word."""
    whole, parts = (StoredTable(OPTIMIZERS[0], form, (1500,)) for _ in range(2))
    cuts = [0, 128, 128 + 640, 1500] if form.state == torch.int8 else [0, 1, 301, 302, 1111, 1500]

    def part(array: Tensor, role: int, begin: int, end: int) -> Tensor:
        if role == Role.STEP:
            return array.clone()
        if role >= Role.SCALE and role < Role.MASTER:
            return array[begin // _C.BLOCK : -(-end // _C.BLOCK)]
        return array[begin:end]

    (param,), (grad,), (arrays,) = parts.params, parts.grads, parts.arrays
    rows = [
        Row(
            param[begin:end], grad[begin:end],
            [part(array, role, begin, end) for role, array in arrays.items()],
            list(arrays), 0, begin,
        )
        for begin, end in pairwise(cuts)
    ]  # fmt: skip
    assert list_rows(parts.table.address, [rows])
    assert torch.ops.fusedstep.table_refresh(whole.table.address, whole.grads, [])
    for _ in range(3):
        for one in (whole, parts):
            torch.ops.fusedstep.table_step_(
                one.table.address, one.plan.address, one.params[0], *UNCLIPPED
            )
    assert_same_bits(param, whole.params[0], "the parameter")
    for role, array in whole.arrays[0].items():
        if role != Role.STEP:  # of which each part has its own
            assert_same_bits(arrays[role], array, f"role {int(role)}")


def ones(size: int = SIZE) -> Tensor:
    param = torch.ones(size, dtype=torch.bfloat16, requires_grad=True)
    param.grad = torch.ones_like(param)
    return param


@pytest.mark.parametrize("share", [1 / 16, 0.3, 0.49])
def test_updates_below_half_a_unit_move_the_mean(share: float) -> None:
    """Nearest loses them all; the mean of these is right within 5 standard errors."""
    unit, steps = 2.0**-8, 12  # below one, where a step downwards leads
    param, nearest = ones(), ones()
    ours = fusedstep.SGD([param], lr=share * unit, stochastic_rounding=True)
    plain = fusedstep.SGD([nearest], lr=share * unit)
    moved = []
    for _ in range(steps):
        ours.step()
        plain.step()
        moved.append((1 - param.detach().double()).mean().item())
    assert (nearest == 1).all()
    error = unit * (share * (1 - share) * steps / SIZE) ** 0.5
    assert abs(moved[-1] - steps * share * unit) < 5 * error
    for k, mean in enumerate(moved, start=1):  # at every step, not only at the end
        assert abs(mean - k * share * unit) < 6 * error


def test_elements_tensors_and_steps_are_rounded_independently() -> None:
    a, b = ones(), ones()
    optimizer = fusedstep.SGD([a, b], lr=2.0**-9, stochastic_rounding=True)
    up: list[Tensor] = []
    for _ in range(2):
        before = [p.detach().float() for p in (a, b)]
        optimizer.step()
        up += [(p.detach().float() < q).double() for p, q in zip((a, b), before, strict=True)]
    up.append(up[0].roll(1))  # neighbours, of which each two share a word of the generator
    up.append(up[0].roll(2))  # and those that have the same half of the next word
    correlations = torch.corrcoef(torch.stack(up)) - torch.eye(len(up))
    assert correlations.abs().max() < 5 / SIZE**0.5


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=["bfloat16", "int8"])
def test_slow_averages_follow_in_fewer_bits(state_dtype: Any) -> None:
    """A second moment with beta2 = 0.999, which to nearest would stay where it is."""
    param = torch.zeros(SIZE, requires_grad=True)
    optimizer = fusedstep.AdamW([param], lr=0.0, betas=(0.9, 0.999), state_dtype=state_dtype)
    param.grad = torch.ones_like(param)
    optimizer.step()
    largest = torch.arange(SIZE) % 128 == 0
    param.grad = torch.where(largest, 1.0, 0.5)  # so that the others lie between codes
    for _ in range(300):
        optimizer.step()
    second = optimizer.to_torch_state_dict()["state"][0]["exp_avg_sq"].double()
    for where, square in ((largest, 1.0), (~largest, 0.25)):
        expected = 0.001 * 0.999**300 + square * (1 - 0.999**300)
        assert second[where].mean().item() == pytest.approx(expected, rel=0.01)


def test_counting_goes_on_after_a_checkpoint_of_another_implementation() -> None:
    """No step is rounded by the numbers of another: the count is the checkpoint's."""
    params = make_params((SIZE,))
    theirs = torch.optim.AdamW(params, lr=0.0)
    for step in range(3):
        set_grads(params, seed=step)
        theirs.step()
    ours = fusedstep.AdamW([p.detach().clone() for p in params], lr=0.0, state_dtype="int8")
    ours.load_state_dict(theirs.state_dict())
    set_grads(ours.param_groups[0]["params"], seed=3)
    ours.step()
    (state,) = ours.state.values()
    assert float(state["step"]) == 4
