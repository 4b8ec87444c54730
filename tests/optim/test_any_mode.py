"""One property for every mode at once: any groups of parameters step as the reference does."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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

STATE_DTYPES = st.sampled_from([None, torch.bfloat16, "int8"])
# How a bfloat16 parameter is kept.
KEPT = st.sampled_from(
    [{}, {"master": "float32"}, {"master": "remainder"}, {"stochastic_rounding": True}]
)
tensors = st.fixed_dictionaries(
    {
        "shape": st.lists(st.integers(0, 20), max_size=3),
        "layout": st.sampled_from(LAYOUTS),
        "grad_dtype": st.sampled_from(DTYPES),
        "present": st.tuples(*[st.booleans()] * 3),
    }
)
groups = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([torch.bfloat16, *DTYPES]),
        "state_dtype": STATE_DTYPES,
        "kept": KEPT,
        "tensors": st.lists(tensors, min_size=1, max_size=3),
        "lr": st.floats(0, 1),
    }
)


@settings(bounded, max_examples=100)
@given(
    kind=st.sampled_from(OPTIMIZERS),
    groups=st.lists(groups, min_size=1, max_size=3),
    seed=st.integers(0, 2**64 - 1),
    ema_decay=st.none() | st.floats(0, 0.999),
    nonfinite=st.sampled_from(["propagate", "skip"]),
    spoil=st.sampled_from([None, math.nan, math.inf]),
    size=st.sampled_from([1.0, 1.0, 1e-30, 1e15]),
    count=st.sampled_from([1, 2]),
)
def test_any_mode_has_the_bits_of_its_reference(
    kind: Kind,
    groups: list[dict[str, Any]],
    seed: int,
    ema_decay: float | None,
    nonfinite: str,
    spoil: float | None,
    size: float,
    count: int,
) -> None:
    described, param_groups = [], []
    for group in groups:
        members = []
        for tensor in group["tensors"]:
            (values,) = make_params(tensor["shape"], dtype=group["dtype"], seed=len(described))
            members.append(laid_out(values.detach(), tensor["layout"]).requires_grad_())
            described.append((members[-1], tensor))
        param_groups.append({"params": members, "lr": group["lr"]})
        if group["dtype"] != torch.float64:
            state = {"state_dtype": group["state_dtype"]}
            param_groups[-1] = kind.fitting(state).options | param_groups[-1] | state
        if group["dtype"] == torch.bfloat16:
            param_groups[-1].update(group["kept"])
    shadow = Shadow(
        kind.ours(param_groups, max_norm=1.0, nonfinite=nonfinite, seed=seed, ema_decay=ema_decay)
    )
    with threads(count):
        for step in range(3):
            for i, (param, tensor) in enumerate(described):
                set_grads([param], step + 10 * i, tensor["grad_dtype"], size)
                if spoil is not None and step == 1 and i == 0 and param.numel() > 0:
                    param.grad[(0,) * param.dim()] = spoil
                if not tensor["present"][step]:
                    param.grad = None
            shadow.step()
