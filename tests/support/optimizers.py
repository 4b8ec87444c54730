"""The optimizers of the package: a line here adds one to all tests that run with each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import fusedstep
from fusedstep.optim.distributed import local
from tests.support.tensors import assert_same_bits


@dataclass(frozen=True)
class Kind:
    """A class of fusedstep by name, with options that fill every state it has."""

    name: str
    options: dict[str, Any]

    def ours(self, params: Iterable[Any], **more: Any) -> Optimizer:
        """The fused optimizer."""
        return getattr(fusedstep, self.name)(params, **self.fitting(more).options | more)

    def fitting(self, more: dict[str, Any]) -> Kind:
        """This kind with these options: RMSprop is not centered with state that is rounded."""
        if more.get("state_dtype") is None or "centered" not in self.options:
            return self
        return Kind(self.name, self.options | {"centered": False})

    def torchs(self, params: Iterable[Any], **more: Any) -> Optimizer:
        """Its namesake in torch.optim, with the same options."""
        return getattr(torch.optim, self.name)(params, **self.options | more)


OPTIMIZERS = [
    Kind("AdamW", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    Kind("Adam", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    Kind("RMSprop", {"lr": 0.003, "weight_decay": 0.1, "momentum": 0.9, "centered": True}),
    Kind("SGD", {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "dampening": 0.5}),
    Kind("Adagrad", {"lr": 0.01, "weight_decay": 0.1, "initial_accumulator_value": 0.1}),
    Kind("Lion", {"lr": 0.001, "weight_decay": 0.1}),
]

# Of the matrices alone: for tests that ask something of every class.
MUON = Kind("Muon", {"lr": 0.01, "weight_decay": 0.1})

every_kind = pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.name)
every_class = pytest.mark.parametrize("kind", [*OPTIMIZERS, MUON], ids=lambda kind: kind.name)
# Those that torch has as well, where its class is what to compare with.
NAMESAKES = [kind for kind in OPTIMIZERS if hasattr(torch.optim, kind.name)]
every_namesake = pytest.mark.parametrize("kind", NAMESAKES, ids=lambda kind: kind.name)


def params_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters, group after group."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def assert_same_run(actual: Optimizer, expected: Optimizer) -> None:
    """Both came to the same parameters, state, rates and norm, bit for bit; of DTensors, here."""
    for i, (p, q) in enumerate(zip(params_of(actual), params_of(expected), strict=True)):
        assert_same_bits(local(p), local(q), f"params[{i}]")
        assert expected.state[q], f"params[{i}] never stepped"
        assert actual.state[p].keys() == expected.state[q].keys()
        for name, value in actual.state[p].items():
            assert_same_bits(local(value), local(expected.state[q][name]), f"{name} of params[{i}]")
    rates = ([group["lr"] for group in one.param_groups] for one in (actual, expected))
    assert next(rates) == next(rates)
    assert (actual.grad_norm is None) == (expected.grad_norm is None)
    if expected.grad_norm is not None:
        assert_same_bits(actual.grad_norm, expected.grad_norm, "grad_norm")
