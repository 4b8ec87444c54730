"""Any parameters, options and modes: each step has the bits of its reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Optimizer

import fusedstep
from tests.support.optimizers import OPTIMIZERS, Kind
from tests.support.shadow import Shadow
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    bounded,
    laid_out,
    make_params,
    set_grads,
    threads,
)

Groups = list[dict[str, Any]]

TENSOR = {
    "shape": st.lists(st.integers(0, 25), max_size=3),
    "layout": st.sampled_from(LAYOUTS),
    "grad_dtype": st.sampled_from(DTYPES),
    "grad_layout": st.sampled_from(LAYOUTS),
    "present": st.tuples(*[st.booleans()] * 3),
}
# What happens in the three steps: `bad` is put into a gradient of the second.
RUNS = st.fixed_dictionaries(
    {
        "threads": st.sampled_from([1, 2, 3]),
        "bad": st.sampled_from([None, math.nan, math.inf]),
        "scale": st.sampled_from([None, 1024.0, 3.0]),
        "size": st.sampled_from([1.0, 1.0, 1e-30, 1e15, 1e25]),
    }
)


def groups_of(
    more_of_tensors: dict[str, st.SearchStrategy], **more: st.SearchStrategy
) -> st.SearchStrategy:
    """Lists of parameter groups: their tensors, the rate, and these."""
    tensor = st.fixed_dictionaries(TENSOR | more_of_tensors)
    tensors = st.lists(tensor, min_size=1, max_size=4)
    group = st.fixed_dictionaries({"tensors": tensors, "lr": st.floats(0, 1), **more})
    return st.lists(group, min_size=1, max_size=3)


def assert_same_steps(
    make: Callable[[Groups], Optimizer], groups: Groups, run: dict[str, Any]
) -> None:
    """Three steps of the optimizer that `make` makes of the groups, and of its reference."""
    described: list[tuple[Tensor, dict[str, Any]]] = []
    param_groups = []
    for group in groups:
        options = {key: value for key, value in group.items() if key not in ("tensors", "dtype")}
        members = []
        for tensor in group["tensors"]:
            dtype = tensor.get("dtype", group.get("dtype"))  # a mode is for groups of one dtype
            (values,) = make_params(tensor["shape"], dtype=dtype, seed=len(described))
            members.append(laid_out(values.detach(), tensor["layout"]).requires_grad_())
            described.append((members[-1], tensor))
        param_groups.append({"params": members, **options})
    shadow = Shadow(make(param_groups))
    if run["scale"] is not None:
        shadow.optimizer.grad_scale = torch.tensor(run["scale"])
        shadow.optimizer.found_inf = torch.tensor(0.0)
    with threads(run["threads"]):
        for step in range(3):
            for i, (param, tensor) in enumerate(described):
                set_grads([param], step + 10 * i, tensor["grad_dtype"], run["size"])
                param.grad = laid_out(param.grad, tensor["grad_layout"])
                if run["bad"] is not None and step == 1 and i == 0 and param.numel() > 0:
                    param.grad[(0,) * param.dim()] = run["bad"]
                if not tensor["present"][step]:
                    param.grad = None
            shadow.step()


small = st.sampled_from([0.0, 1e-16, 1e-8, 1e-3])  # for epsilons
share = st.floats(0, 0.9999)  # for what a moving average keeps
OF_ADAM = {"betas": st.tuples(share, share), "eps": small, "amsgrad": st.booleans()}
HYPERPARAMETERS: dict[str, dict[str, st.SearchStrategy]] = {
    "Adam": OF_ADAM | {"decoupled_weight_decay": st.booleans()},
    "AdamW": OF_ADAM,
    "RMSprop": {
        "alpha": share, "eps": small, "momentum": st.just(0.0) | share, "centered": st.booleans(),
    },
    "SGD": {
        "momentum": st.just(0.0) | share, "dampening": st.just(0.0) | st.floats(-1, 1),
        "nesterov": st.booleans(),
    },
    "Adagrad": {"eps": small, "lr_decay": st.floats(0, 10), "initial_accumulator_value": small},
    "Lion": {"betas": st.tuples(share, share)},
}  # fmt: skip


def test_every_optimizer_has_hyperparameters_to_draw() -> None:
    assert HYPERPARAMETERS.keys() == {kind.name for kind in OPTIMIZERS}


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_any_hyperparameters(name: str) -> None:
    @settings(bounded, max_examples=30)
    @given(
        groups=groups_of(
            {"dtype": st.sampled_from(DTYPES)},
            weight_decay=st.floats(0, 1),
            maximize=st.booleans(),
            **HYPERPARAMETERS[name],
        ),
        options=st.fixed_dictionaries(
            {
                "max_norm": st.none() | st.floats(0, 1e4),
                "norm_type": st.sampled_from([2.0, 1.0, math.inf]),
                "nonfinite": st.sampled_from(["propagate", "skip"]),
            }
        ),
        run=RUNS,
    )
    def check(groups: Groups, options: dict[str, Any], run: dict[str, Any]) -> None:
        assert_same_steps(lambda made: getattr(fusedstep, name)(made, **options), groups, run)

    check()


# How a bfloat16 parameter is kept.
MASTERS = ("float32", "remainder", "correction")
KEPT = [{}, *({"master": master} for master in MASTERS), {"stochastic_rounding": True}]


@settings(bounded, max_examples=100)
@given(
    kind=st.sampled_from(OPTIMIZERS),
    groups=groups_of(
        {},
        dtype=st.sampled_from([torch.bfloat16, *DTYPES]),
        state_dtype=st.sampled_from([None, torch.bfloat16, "int8"]),
        kept=st.sampled_from(KEPT),
    ),
    options=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**64 - 1),
            "ema_decay": st.none() | st.floats(0, 0.999),
            "nonfinite": st.sampled_from(["propagate", "skip"]),
        }
    ),
    run=RUNS,
)
def test_any_modes(
    kind: Kind, groups: Groups, options: dict[str, Any], run: dict[str, Any]
) -> None:
    described = []
    for group in groups:
        one = {key: group[key] for key in ("tensors", "dtype", "lr")}
        if group["dtype"] != torch.float64:
            state = {"state_dtype": group["state_dtype"]}
            one = kind.fitting(state).options | one | state
        if group["dtype"] == torch.bfloat16:
            one |= group["kept"]
        described.append(one)
    assert_same_steps(lambda made: kind.ours(made, max_norm=1.0, **options), described, run)
