"""Arguments for calling the ops themselves, without an optimizer: AdamW's, as an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.optim.hyperparameters import in_order
from fusedstep.optim.state import Role
from tests.support.tensors import make_params

ADAMW = {
    "lr": 1e-3, "maximize": 0.0, "ema_decay": 0.0, "stochastic_rounding": 0.0, "counted": 0.0,
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2, "decoupled": 1.0,
    "amsgrad": 0.0,
}  # fmt: skip


def values_of(*changed: dict[str, float]) -> list[float]:
    """The values of groups of AdamW, each with what is changed in it."""
    return in_order("adam", [ADAMW | values for values in changed])


VALUES = values_of({})
PLAN = _C.StepPlan("adam", VALUES, 0, [], -1.0, False)
UNCLIPPED = ([], None, 0.0, None, None)  # what `table_step_` takes after the parameter


def randn(
    *shapes: tuple[int, ...], device: torch.device | str = "cpu", seed: int = 0
) -> list[Tensor]:
    return [p.detach() for p in make_params(*shapes, device=device, seed=seed)]


def scalar(value: float, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def arrays_of(*of_each: Sequence[Tensor]) -> tuple[list[Tensor], list[int], list[int]]:
    """The ops' `arrays`, `roles` and `array_counts` from the states and then the step of each
    parameter."""
    roles = [r for arrays in of_each for r in (*range(len(arrays) - 1), int(Role.STEP))]
    return [a for arrays in of_each for a in arrays], roles, [len(arrays) for arrays in of_each]


def fresh_arrays(params: list[Tensor], states: int = 2) -> list[list[Tensor]]:
    """Zeros for each parameter's states, and its step."""
    return [
        [*(torch.zeros_like(p) for _ in range(states)), torch.zeros((), device=p.device)]
        for p in params
    ]


def table_arguments(device: torch.device | str = "cpu") -> tuple[list[Tensor], list[Tensor], tuple]:
    """Parameters, gradients, and what `table_assign` takes after the parameters: one group."""
    shapes = [(3, 4), (), (5,)]
    params, grads = (randn(*shapes, device=device, seed=seed) for seed in range(2))
    arrays, roles, counts = arrays_of(*fresh_arrays(params))
    return params, grads, (arrays, roles, counts, [3], [0, 1, 2], [0, 0, 0])


def step_arguments(device: torch.device | str = "cpu") -> list[Any]:
    """Two groups, the second with amsgrad and a tensor lr, clipped and unscaled."""
    shapes = [(3, 4), (), (5,)]
    params, grads, exp_avgs, exp_avg_sqs = (
        randn(*shapes, device=device, seed=seed) for seed in range(4)
    )
    of_each = [
        [m, v.abs(), scalar(float(i), device)]
        for i, (m, v) in enumerate(zip(exp_avgs, exp_avg_sqs, strict=True))
    ]
    of_each[2].insert(2, exp_avg_sqs[2].abs())
    arrays, roles, counts = arrays_of(*of_each)
    norm = scalar(3.0, device, torch.float64)
    return [
        "adam", params, grads, arrays, roles, counts, [2, 1], values_of({}, {"amsgrad": 1.0}), 0,
        [scalar(0.01, device)], [1], norm, scalar(2.0, device), scalar(0.0, device), 1.0, True,
    ]  # fmt: skip
