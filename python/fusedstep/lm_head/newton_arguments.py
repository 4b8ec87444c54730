"""What the Newton family refuses; everything is checked before anything is computed."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch

from fusedstep.checks import refuse, require_count, require_dense
from fusedstep.lm_head.batch import require_batch
from fusedstep.lm_head.problem import CHUNK_ELEMENTS, Problem


def make_problem(
    function: str,
    weight: Any,
    hidden: Any,
    tokens: Any,
    loss_constant: Any,
    steps: Any,
    chunk_size: Any,
    position_major: bool = False,
) -> Problem:
    """Checks everything. `position_major`: all first positions of `[B, T]`, then all second."""
    require_dense(function, "weight", weight)
    if weight.dim() != 2 or weight.numel() == 0:
        refuse(function, "weight", "have the shape [V, d], both at least 1", tuple(weight.shape))
    size, width = weight.shape
    rows, labels = require_batch(function, hidden, tokens, width, size, weight.device)
    if len(labels) == 0:
        refuse(function, "tokens", "have at least one element", tuple(tokens.shape))
    for argument, tensor in {"weight": weight, "hidden": hidden}.items():
        if not bool(torch.stack(tensor.aminmax()).isfinite().all()):  # NaN is its own extreme
            at = tuple((~tensor.isfinite()).nonzero()[0].tolist())
            refuse(function, f"{argument}{list(at)}", "be finite", tensor[at].item())
    if isinstance(loss_constant, bool) or not isinstance(loss_constant, Real):
        refuse(function, "loss_constant", "be a number", type(loss_constant).__name__, TypeError)
    if not math.isfinite(loss_constant):
        refuse(function, "loss_constant", "be finite", loss_constant)
    require_count(function, "steps", steps, 0)
    if chunk_size is None:
        chunk_size = max(1, CHUNK_ELEMENTS // size)
    require_count(function, "chunk_size", chunk_size, 1)
    if position_major and hidden.dim() == 3:
        order = torch.arange(len(labels), device=labels.device).view(hidden.shape[:2]).T.flatten()
        rows, labels = rows[order], labels[order]
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    weight = weight.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    return Problem(function, weight, rows, labels, float(loss_constant), steps, chunk_size)
