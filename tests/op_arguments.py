"""Arguments for calling the ops themselves, without an optimizer."""

from __future__ import annotations

from typing import Any

import torch
from helpers import make_params
from torch import Tensor

FIELDS = [1e-3, 0.9, 0.999, 1e-8, 1e-2, 1.0, 0.0, 0.0, 0.0]  # csrc/adam_groups.h

TABLE_OPTIONS = (FIELDS, [], None, 0.0, None, None, -1.0, False)


def with_fields(**changed: float) -> list[float]:
    names = ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled", "maximize", "amsgrad")
    values = dict(zip((*names, "lr_is_tensor"), FIELDS, strict=True)) | changed
    return list(values.values())


def randn(
    *shapes: tuple[int, ...], device: torch.device | str = "cpu", seed: int = 0
) -> list[Tensor]:
    return [p.detach() for p in make_params(*shapes, device=device, seed=seed)]


def scalar(value: float, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def adam_arguments(device: torch.device | str = "cpu") -> list[Any]:
    """Two groups, the second with amsgrad and a tensor lr, clipped and unscaled."""
    shapes = [(3, 4), (), (5,)]
    lists = [randn(*shapes, device=device, seed=seed) for seed in range(4)]
    params, grads, exp_avgs, exp_avg_sqs = lists
    largest = [exp_avg_sqs[2].abs()]
    steps = [scalar(float(i), device) for i in range(3)]
    fields = FIELDS + with_fields(amsgrad=1.0, lr_is_tensor=1.0)
    norm = scalar(3.0, device, torch.float64)
    return [
        params, grads, exp_avgs, [v.abs() for v in exp_avg_sqs], largest, steps, [2, 1], fields,
        [scalar(0.01, device)], norm, scalar(2.0, device), scalar(0.0, device), 1.0, True,
    ]  # fmt: skip
