"""Torch's own optimizer database, torch.testing._internal.common_optimizers, against our classes.

Every input torch tries its class on, every error it expects, and what its tests ask of all: dtypes,
gradients of None and of zeros, empty parameters, checkpoints in both directions and older ones.

Left out: complex parameters and sparse gradients, which no kernel takes (test_optimizer.py and
test_refused_tensors.py have the refusals); `differentiable`, refused as by torch's fused steps;
`foreach`, which is torch's step; schedulers (test_lr_schedulers.py has them all); Lion, which torch
does not have.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import fusedstep
from tests.support.tensors import DTYPES, assert_same_bits, make_params, name_of, set_grads

pytest.importorskip("expecttest")  # which the database imports

from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    optim_db,
)

NAMES = ("Adam", "AdamW", "RMSprop", "SGD", "Adagrad")
DATABASE: dict[str, OptimizerInfo] = {info.optim_cls.__name__: info for info in optim_db}
SHAPES = [(40,), (3, 5), (), (0,)]


class Case:
    """One input of the database: the arguments of both optimizers, on a device."""

    def __init__(self, name: str, device: str, options: dict[str, Any]) -> None:
        self.name, self.device, self.options = name, device, options

    def params(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return make_params(*(shapes or SHAPES), dtype=dtype, device=self.device)

    def ours(self, params: Iterable[Tensor]) -> Optimizer:
        return getattr(fusedstep, self.name)(params, **self._arguments())

    def torchs(self, params: Iterable[Tensor]) -> Optimizer:
        return getattr(torch.optim, self.name)(params, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        options = copy.deepcopy(self.options)
        if options.get("capturable") and "lr" in options:  # then torch wants the rate on the GPU
            options["lr"] = torch.as_tensor(options["lr"], device=self.device)
        return options


def cases(without: str = "") -> Iterator[Any]:
    for device, marks in (("cpu", ()), ("cuda", pytest.mark.gpu)):
        for name in NAMES:
            for one in DATABASE[name].optim_inputs_func(torch.device(device)):
                case = Case(name, device, one.kwargs)
                if without not in one.kwargs:
                    yield pytest.param(case, marks=marks, id=f"{name}, {one.desc}, {device}")


every_case = pytest.mark.parametrize("case", list(cases()))


def run(optimizers: Iterable[Optimizer], steps: range) -> None:
    """The same steps of each; gradients depend on the number of the step alone."""
    for optimizer in optimizers:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for step in steps:
            set_grads(params, seed=step)
            optimizer.step()


def assert_alike(ours: Optimizer, theirs: Optimizer) -> None:
    """Parameters and state are close; our state has no other entries than SGD's count."""
    mine, torchs = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert mine.keys() == torchs.keys()
    for i, expected in torchs.items():
        counted = {"step"} if "momentum_buffer" in mine[i] else set()
        assert mine[i].keys() - expected.keys() <= counted
        for name, value in expected.items():
            torch.testing.assert_close(mine[i][name], value, check_device=name != "step")
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q)


@every_case
def test_every_input_is_close_to_torch(case: Case) -> None:
    ours, theirs = case.ours(case.params()), case.torchs(case.params())
    run((ours, theirs), range(5))
    assert_alike(ours, theirs)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float32], ids=name_of)
@every_case
def test_every_dtype_is_close_to_torch_in_float64(case: Case, dtype: torch.dtype) -> None:
    """The oracle computes in float64 and rounds its parameters to `dtype` after every step."""
    params, eps = case.params(dtype=dtype), torch.finfo(dtype).eps
    wide = [p.detach().double().requires_grad_() for p in params]
    ours, theirs = case.ours(params), case.torchs(wide)
    for step in range(4):
        set_grads(params, seed=step)
        for param, twin in zip(params, wide, strict=True):
            twin.grad = param.grad.double()
        for optimizer in (ours, theirs):
            optimizer.step()
        for param, twin in zip(params, wide, strict=True):
            with torch.no_grad():
                twin.copy_(twin.to(dtype))
            # A float32 rate, and half an ulp at each of the two roundings that may part.
            torch.testing.assert_close(
                param.double(), twin.detach(), rtol=max(2 * eps, 1e-9), atol=max(eps / 8, 1e-9)
            )


@every_case
def test_state_dict_goes_both_ways(case: Case) -> None:
    ours, theirs = case.ours(case.params()), case.torchs(case.params())
    run((ours, theirs), range(3))
    from_torch, from_ours = (
        make(p.detach().clone().requires_grad_() for p in source.param_groups[0]["params"])
        for make, source in ((case.ours, theirs), (case.torchs, ours))
    )
    from_torch.load_state_dict(copy.deepcopy(theirs.state_dict()))
    from_ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    run((ours, theirs, from_torch, from_ours), range(3, 6))
    assert_alike(ours, theirs)
    assert_alike(from_torch, theirs)
    assert_alike(from_ours, theirs)


@every_case
def test_older_state_dict_without_the_flags_that_came_later(case: Case) -> None:
    ours = case.ours(case.params())
    older = case.ours(case.params())
    run((ours, older), range(2))
    state_dict = copy.deepcopy(older.state_dict())
    for flag in DATABASE[case.name].not_og_supported_flags:
        state_dict["param_groups"][0].pop(flag, None)
    for state in state_dict["state"].values():
        if "step" in state:
            state["step"] = float(state["step"])
    older.load_state_dict(state_dict)
    for optimizer in (ours, older):
        optimizer.param_groups[0]["maximize"] = False
    run((ours, older), range(2, 4))
    assert_alike(ours, older)


@every_case
def test_gradients_of_none(case: Case) -> None:
    ours, theirs = case.ours(case.params()), case.torchs(case.params())
    for optimizer in (ours, theirs):
        before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
        optimizer.step()  # no parameter has a gradient
        for param, value in zip(optimizer.param_groups[0]["params"], before, strict=True):
            assert_same_bits(param, value, "parameter")
    assert_alike(ours, theirs)
    for step in range(4):
        for optimizer in (ours, theirs):
            params = optimizer.param_groups[0]["params"]
            set_grads(params, seed=step)
            params[step % 3].grad = None
            optimizer.step()
    assert_alike(ours, theirs)


@pytest.mark.parametrize("case", list(cases(without="weight_decay")))
def test_gradients_of_zeros(case: Case) -> None:
    params = case.params()
    optimizer = case.ours(params)
    optimizer.param_groups[0]["weight_decay"] = 0.0  # AdamW decays by default
    for param in params:
        param.grad = torch.zeros_like(param)
    before = [p.detach().clone() for p in params]
    for _ in range(3):
        optimizer.step()
    for param, value in zip(params, before, strict=True):
        assert_same_bits(param, value, "parameter")


@every_case
def test_empty_parameters(case: Case) -> None:
    shapes = [(0,), (0, 4), (3, 0, 2)]
    ours, theirs = case.ours(case.params(*shapes)), case.torchs(case.params(*shapes))
    run((ours, theirs), range(3))
    assert_alike(ours, theirs)


# Where our wording is another than torch's, by the database's description of the input.
WORDING = {
    "Tensor lr must be 1-element": r"lr must have one element, got (2,)",
    "beta1 should be between 0 and 1": "betas[0] must be at least 0 and below 1, got 1.0",
    "weight_decay should > 0": "weight_decay must be 0 or more, got -1.0",
    "momentum should be between 0 and 1": "momentum must be 0 or more, got -",
    "lr_decay must be bigger than 0": "lr_decay must be 0 or more, got -0.5",
}


def errors(device: str) -> list[Any]:
    return [
        pytest.param(name, error, id=f"{name}, {error.optimizer_error_input.desc}")
        for name in NAMES
        for error in DATABASE[name].optim_error_inputs_func(torch.device(device), torch.float32)
    ]


@pytest.mark.parametrize(("name", "error"), errors("cpu"))
def test_every_error_input_raises_or_warns_as_in_torch(
    name: str, error: ErrorOptimizerInput
) -> None:
    answer(name, error)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_every_error_input_on_a_gpu_raises_or_warns_as_in_torch(name: str) -> None:
    for error in DATABASE[name].optim_error_inputs_func(torch.device("cuda"), torch.float32):
        answer(name, error)


def answer(name: str, error: ErrorOptimizerInput) -> None:
    """Both raise or warn alike: the same type, and torch's words or those of WORDING."""
    assert error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR  # the only kind there is so far
    wrong = error.optimizer_error_input
    params = make_params((4,)) if wrong.params is None else wrong.params
    expect = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    with expect(error.error_type, match=error.error_regex):
        getattr(torch.optim, name)(params, **wrong.kwargs)
    ours = re.escape(f"{name}: {WORDING[wrong.desc]}") if wrong.desc in WORDING else None
    with expect(error.error_type, match=ours or error.error_regex):
        getattr(fusedstep, name)(params, **wrong.kwargs)
