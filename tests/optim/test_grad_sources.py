"""grad_attribute: a step reads another attribute in every way in which it reads `.grad`."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.amp import GradScaler

import fusedstep
from fusedstep.optim.tables import Tables
from tests.support.modes import MODES, every_class_and_mode
from tests.support.optimizers import OPTIMIZERS, Kind, assert_same_run, every_class, params_of
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    assert_same_bits,
    bounded,
    copies,
    laid_out,
    make_params,
    set_grads,
)

SHAPES = [(20, 30), (3, 140), (5, 5)]


class Twins:
    """Two optimizers: one reads `main_grad`, the other, of copies, the same values in `.grad`."""

    def __init__(self, kind: Kind, *shapes: Sequence[int], mode: str = "plain", **options: Any):
        of_mode, dtype = MODES.get(mode, ({}, {}))
        options = of_mode | options
        self.params = make_params(*shapes, **dtype)
        self.others = copies(self.params)
        self.optimizer = kind.ours(self.params, grad_attribute="main_grad", **options)
        self.expected = kind.ours(self.others, **options)

    def set_grads(self, seed: int, missing: Sequence[int] = (), scale: float = 1.0) -> None:
        """float32 gradients; what is in `.grad` of the one must not matter."""
        set_grads(self.others, seed, torch.float32, scale)
        for i, (param, other) in enumerate(zip(self.params, self.others, strict=True)):
            param.main_grad = other.grad.clone()
            param.grad = torch.full_like(param, math.nan) if seed % 2 else None
            if i in missing:
                param.main_grad = other.grad = None

    def step(self, seed: int, missing: Sequence[int] = ()) -> None:
        self.set_grads(seed, missing)
        for optimizer in (self.optimizer, self.expected):
            optimizer.step()

    def check(self) -> None:
        assert_same_run(self.optimizer, self.expected)


# --- another attribute ----------------------------------------------------------------------------


@every_class_and_mode
def test_the_bits_of_the_same_values_in_grad(kind: Kind, mode: str) -> None:
    """The last parameter has its first gradient late, the first one has none for a step."""
    twins = Twins(kind, *SHAPES, mode=mode, max_norm=1.0)
    for step, missing in enumerate(([2], [2], [0], [], [])):
        twins.step(step, missing)
    twins.check()


@every_class
def test_is_read_unrounded(kind: Kind) -> None:
    """float32 gradients of bfloat16 parameters, which rounding to bfloat16 would change."""
    runs = []
    for rounded in (False, True):
        (param,) = make_params((20, 30), dtype=torch.bfloat16)
        optimizer = kind.ours([param], grad_attribute="main_grad", max_norm=1e9)
        grad = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
        param.main_grad = grad.bfloat16().float() if rounded else grad
        optimizer.step()
        assert_same_bits(optimizer.grad_norm, fusedstep.get_total_norm([param.main_grad]), "norm")
        (momentum, *_) = optimizer.state[param].values()
        runs.append((optimizer.grad_norm, momentum))
    for exact, rounded in zip(*runs, strict=True):
        assert not torch.equal(exact, rounded)


@bounded
@given(
    present=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=2, max_size=5),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=4, max_size=4),
    layout=st.sampled_from(LAYOUTS),
    deleted=st.booleans(),
)
def test_buffers_that_come_and_go(
    present: list[list[bool]], dtypes: list[torch.dtype], layout: str, deleted: bool
) -> None:
    """Of any dtype and layout; a parameter without the attribute has no gradient."""
    twins = Twins(OPTIMIZERS[0], (5, 4), (0,), (), (70,), max_norm=1.0, ema_decay=0.5)
    for step, flags in enumerate(present):
        missing = [i for i, there in enumerate(flags) if not there]
        twins.set_grads(step, missing)
        for param, other, dtype in zip(twins.params, twins.others, dtypes, strict=True):
            if other.grad is not None:
                other.grad = other.grad.to(dtype)
                param.main_grad = laid_out(other.grad, layout)
            elif deleted:
                del param.main_grad
        for optimizer in (twins.optimizer, twins.expected):
            optimizer.step()
        for i, (p, q) in enumerate(zip(twins.params, twins.others, strict=True)):
            assert_same_bits(p, q, f"params[{i}]")
            state = twins.optimizer.state.get(p, {})
            for name, value in twins.expected.state.get(q, {}).items():
                assert_same_bits(state[name], value, f"{name} of params[{i}]")


@every_class
def test_what_stays_is_not_checked_again(kind: Kind) -> None:
    """Buffers that others write, and other buffers at other addresses."""
    twins = Twins(kind, *SHAPES)
    twins.step(0)
    kept = [param.main_grad for param in twins.params]
    with patch.object(Tables, "rebuild", side_effect=AssertionError):
        twins.step(1)
        for param, buffer in zip(twins.params, kept, strict=True):
            param.main_grad = buffer.copy_(param.main_grad)
        twins.optimizer.step()
        twins.expected.step()
    twins.check()


@every_class
def test_gradients_are_left_alone(kind: Kind) -> None:
    twins = Twins(kind, *SHAPES, max_norm=0.1)
    twins.step(0)
    for param, other in zip(twins.params, twins.others, strict=True):
        assert_same_bits(param.main_grad, other.grad)
        assert param.main_grad._version == 0


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_resets_grad_alone(set_to_none: bool) -> None:
    (param,) = make_params((3,))
    optimizer = fusedstep.AdamW([param], grad_attribute="main_grad")
    param.main_grad = torch.ones(3)
    set_grads([param])
    optimizer.zero_grad(set_to_none=set_to_none)
    assert param.grad is None if set_to_none else not param.grad.any()
    assert torch.equal(param.main_grad, torch.ones(3))


def sparse(param: Tensor) -> Any:
    return torch.zeros(param.shape).to_sparse()


def number(param: Tensor) -> Any:
    return 0.0


def smaller(param: Tensor) -> Any:
    return torch.zeros(2)


def without_values(param: Tensor) -> Any:
    return torch.zeros(param.shape, device="meta")


REFUSED: list[tuple[Callable[[Tensor], Any], str, str, type[Exception]]] = [
    (sparse, "be dense", "torch.sparse_coo", TypeError),
    (number, "be a tensor", "float", TypeError),
    (smaller, r"have its parameter's shape \(5, 5\)", r"\(2,\)", ValueError),
    (without_values, "be on a CPU or a CUDA device", "meta", ValueError),
]


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(("wrong", "must", "got", "error"), REFUSED)
@every_class
def test_messages_name_the_attribute(
    kind: Kind, wrong: Any, must: str, got: str, error: type[Exception], stepped: bool
) -> None:
    twins = Twins(kind, *SHAPES, max_norm=1.0)
    if stepped:
        twins.step(0)
    twins.set_grads(1)
    twins.params[2].main_grad = wrong(twins.params[2])
    before = Snapshot(twins.params, twins.optimizer)
    with refuses(kind.name, "params[2].main_grad", must, got, error):
        twins.optimizer.step()
    before.check()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@every_class
def test_steps_that_are_left_out(kind: Kind, value: float) -> None:
    twins = Twins(kind, *SHAPES, nonfinite="skip")
    twins.step(0)
    twins.set_grads(1)
    for param in (twins.params[1], twins.others[1]):
        (param.main_grad if param is twins.params[1] else param.grad)[0, 0] = value
    before = copy.deepcopy(twins.params)
    twins.optimizer.step()
    twins.expected.step()
    assert all(map(torch.equal, twins.params, before))
    twins.step(2)
    twins.check()
    raising = Twins(kind, *SHAPES, nonfinite="error")
    raising.set_grads(0)
    raising.params[1].main_grad[0, 0] = value
    with pytest.raises(RuntimeError, match=f"{kind.name}: the gradients' norm must be finite"):
        raising.optimizer.step()


@every_class
def test_closures_and_hooks_fill_it(kind: Kind) -> None:
    twins = Twins(kind, *SHAPES)
    for step in range(3):
        twins.optimizer.step(lambda step=step: twins.set_grads(step))
        twins.expected.step()
    hook = twins.optimizer.register_step_pre_hook(lambda *_: twins.set_grads(3))
    twins.optimizer.step()
    twins.expected.step()
    hook.remove()
    twins.check()


@every_class
def test_copies_read_it_too(kind: Kind) -> None:
    twins = Twins(kind, *SHAPES)
    twins.step(0)
    for copied in (copy.deepcopy(twins.optimizer), pickle.loads(pickle.dumps(twins.optimizer))):
        assert copied.grad_attribute == "main_grad"
        twins.set_grads(1)
        for param, other in zip(params_of(copied), twins.others, strict=True):
            param.main_grad, param.grad = other.grad, None
        copied.step()
        expected = copy.deepcopy(twins.expected)
        for param, other in zip(params_of(expected), twins.others, strict=True):
            param.grad_dtype = None
            param.grad = other.grad
        expected.step()
        assert_same_run(copied, expected)


def test_optimizers_that_read_different_attributes_share_parameters() -> None:
    """Each sees its own gradients, in turns."""
    params = make_params(*SHAPES)
    others = copies(params)
    kinds = [fusedstep.SGD, fusedstep.Lion]
    ours = [k(params, lr=0.1, grad_attribute=f"grad_{i}") for i, k in enumerate(kinds)]
    alone = [k(others, lr=0.1) for k in kinds]
    for step in range(4):
        for i in range(2):
            set_grads(others, seed=2 * step + i)
            for param, other in zip(params, others, strict=True):
                setattr(param, f"grad_{i}", other.grad.clone())
            ours[i].step()
            alone[i].step()
    for param, other in zip(params, others, strict=True):
        assert_same_bits(param, other)


@pytest.mark.parametrize("name", [None, 3, "", "main grad", "optimizer.main_grad"])
@every_class
def test_names_that_no_attribute_has(kind: Kind, name: Any) -> None:
    with refuses(
        kind.name, "grad_attribute", "be the name of an attribute", repr(name), ValueError
    ):
        kind.ours(make_params((3, 4)), grad_attribute=name)


# --- GradScaler, which reads `.grad` --------------------------------------------------------------


def scaler_after_use() -> GradScaler:
    scaler = GradScaler("cpu")
    scaler.scale(torch.zeros(()))  # it makes its tensors at the first use
    return scaler


@pytest.mark.parametrize("unscale", [False, True], ids=["step", "unscale_ then step"])
@every_class
def test_grad_scaler_cannot_step_what_it_does_not_read(kind: Kind, unscale: bool) -> None:
    """Its verdict would be the number 0, whatever the gradients are."""
    twins = Twins(kind, *SHAPES, max_norm=1.0)
    twins.step(0)
    twins.set_grads(1)
    for param in twins.params:
        param.grad = None
    scaler = scaler_after_use()
    before = Snapshot(twins.params, twins.optimizer)
    must = "be a tensor where gradients are in main_grad, which GradScaler does not read"
    if unscale:
        scaler.unscale_(twins.optimizer)
    with refuses(kind.name, "found_inf", must, "0", TypeError):
        scaler.step(twins.optimizer)
    before.check()


@every_class
def test_the_user_scales_what_grad_scaler_does_not_read(kind: Kind) -> None:
    """grad_scale and found_inf are what GradScaler sets, too."""
    twins = Twins(kind, *SHAPES, max_norm=1.0)
    for step, poisoned in enumerate((False, True, False)):
        twins.set_grads(step)
        for param in twins.params:
            param.main_grad *= 1024.0  # a power of 2 rounds nothing
        if poisoned:
            twins.params[0].main_grad[0, 0] = math.inf
        grads = [param.main_grad for param in twins.params]
        found = not all(grad.isfinite().all() for grad in grads)
        twins.optimizer.grad_scale = torch.tensor(1024.0)
        twins.optimizer.found_inf = torch.tensor(float(found))
        twins.optimizer.step()
        if not poisoned:
            twins.expected.step()
    twins.check()


@every_class
def test_grad_scaler_without_any_gradient_advances_averages(kind: Kind) -> None:
    """It then sets found_inf to the number 0."""
    params = make_params((3, 4))
    optimizer = kind.ours(params, ema_decay=0.5)
    set_grads(params)
    optimizer.step()
    optimizer.zero_grad()
    before = [average.clone() for average in optimizer.ema_parameters()]
    values = [param.detach().clone() for param in params]
    scaler_after_use().step(optimizer)
    for param, old, average, was in zip(
        params, values, optimizer.ema_parameters(), before, strict=True
    ):
        assert_same_bits(param, old)
        torch.testing.assert_close(average, 0.5 * was + 0.5 * old)
