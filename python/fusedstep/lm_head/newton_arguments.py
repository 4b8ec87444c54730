"""What the Newton family refuses; everything is checked before anything is computed."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.linalg.arguments import require_matrices
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
    require_matrices(function, "weight", weight)
    require_matrices(function, "hidden", hidden)
    if weight.dim() != 2 or weight.numel() == 0:
        refuse(function, "weight", "have the shape [V, d], both at least 1", tuple(weight.shape))
    size, width = weight.shape
    if hidden.dim() > 3 or hidden.shape[-1] != width:
        must = f"have the shape [N, {width}] or [B, T, {width}]"
        refuse(function, "hidden", must, tuple(hidden.shape))
    _require_tokens(function, tokens, hidden.shape[:-1], size)
    for argument, tensor in {"hidden": hidden, "tokens": tokens}.items():
        if tensor.device != weight.device:
            refuse(function, argument, f"be on weight's device {weight.device}", tensor.device)
    for argument, tensor in {"weight": weight, "hidden": hidden}.items():
        if not bool(tensor.isfinite().all()):
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
        hidden, tokens = hidden.transpose(0, 1), tokens.transpose(0, 1)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return Problem(
        weight.detach().to(dtype, copy=True, memory_format=torch.contiguous_format),
        hidden.detach().reshape(-1, width),
        tokens.reshape(-1),
        float(loss_constant),
        steps,
        chunk_size,
    )


def require_count(function: str, argument: str, value: Any, least: int) -> int:
    """`value`, an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(function, argument, "be an integer", type(value).__name__, TypeError)
    if value < least:
        refuse(function, argument, f"be {least} or more", value)
    return value


def _require_tokens(function: str, tokens: Any, shape: torch.Size, size: int) -> None:
    if not isinstance(tokens, Tensor):
        refuse(function, "tokens", "be a tensor", type(tokens).__name__, TypeError)
    if tokens.dtype != torch.int64:
        refuse(function, "tokens", "be int64", tokens.dtype, TypeError)
    if tokens.shape != shape:
        refuse(function, "tokens", f"have hidden's shape {tuple(shape)}", tuple(tokens.shape))
    if tokens.numel() == 0:
        refuse(function, "tokens", "have at least one element", tuple(tokens.shape))
    outside = (tokens < 0) | (tokens >= size)
    if bool(outside.any()):
        at = outside.nonzero()[0].tolist()
        must = f"be at least 0 and below weight's {size} rows"
        refuse(function, f"tokens{at}", must, tokens[tuple(at)].item())
