"""One property for everything at once: the step on any parameters is that of the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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

tensors = st.fixed_dictionaries(
    {
        "shape": st.lists(st.integers(0, 30), max_size=3),
        "dtype": st.sampled_from(DTYPES),
        "grad_dtype": st.sampled_from(DTYPES),
        "layout": st.sampled_from(LAYOUTS),
        "grad_layout": st.sampled_from(LAYOUTS),
        "present": st.tuples(st.booleans(), st.booleans(), st.booleans()),
    }
)
options = st.fixed_dictionaries(
    {
        "max_norm": st.none() | st.floats(0, 1e4),
        "norm_type": st.sampled_from([2.0, 1.0, math.inf]),
        "nonfinite": st.sampled_from(["propagate", "skip"]),
    }
)
small = st.sampled_from([0.0, 1e-16, 1e-8, 1e-3])  # for epsilons
share = st.floats(0, 0.9999)  # for what a moving average keeps


def any_step(optimizer: type, **hyperparameters: st.SearchStrategy) -> Callable[[], None]:
    """A test of this class over groups that each have hyperparameters drawn from these."""
    groups = st.fixed_dictionaries(
        {
            "tensors": st.lists(tensors, min_size=1, max_size=4),
            "lr": st.floats(0, 1),
            "weight_decay": st.floats(0, 1),
            "maximize": st.booleans(),
            **hyperparameters,
        }
    )

    @settings(bounded, max_examples=60)
    @given(
        groups=st.lists(groups, min_size=1, max_size=3),
        options=options,
        count=st.sampled_from([1, 2, 3]),
        spoil=st.sampled_from([None, math.nan, math.inf]),
        scale=st.sampled_from([None, 1024.0, 3.0]),
        size=st.sampled_from([1.0, 1.0, 1e-30, 1e25]),
    )
    def test(
        groups: list[dict[str, Any]],
        options: dict[str, Any],
        count: int,
        spoil: float | None,
        scale: float | None,
        size: float,
    ) -> None:
        described, param_groups = [], []
        for group in groups:
            members = []
            for tensor in group["tensors"]:
                (values,) = make_params(tensor["shape"], dtype=tensor["dtype"], seed=len(described))
                members.append(laid_out(values.detach(), tensor["layout"]).requires_grad_())
                described.append((members[-1], tensor))
            param_groups.append({**group, "params": members})
            del param_groups[-1]["tensors"]
        shadow = Shadow(optimizer(param_groups, **options))
        if scale is not None:
            shadow.optimizer.grad_scale = torch.tensor(scale)
            shadow.optimizer.found_inf = torch.tensor(0.0)
        with threads(count):
            for step in range(3):
                for i, (param, tensor) in enumerate(described):
                    set_grads([param], step + 10 * i, tensor["grad_dtype"], size)
                    param.grad = laid_out(param.grad, tensor["grad_layout"])
                    if spoil is not None and step == 1 and i == 0 and param.numel() > 0:
                        param.grad[(0,) * param.dim()] = spoil
                    if not tensor["present"][step]:
                        param.grad = None
                shadow.step()

    return test
