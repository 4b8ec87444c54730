"""Hidden states and the tokens they are to predict: what is refused, and their two sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedstep.checks import refuse, require_dense
from fusedstep.linalg.numerics import whole_gram

SORT_BLOCK = 65536  # tokens sorted at a time: what that needs does not grow with their number


def require_batch(
    function: str, hidden: Any, tokens: Any, d_model: int, vocab_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`hidden` as [N, d_model] and `tokens` as [N], checked. Waits for the tokens' device.

    tokens: int64 in [0, vocab_size), of hidden's shape without the last dimension, or flat.
    """
    require_dense(function, "hidden", hidden)
    if not isinstance(tokens, Tensor):
        refuse(function, "tokens", "be a tensor", type(tokens).__name__, TypeError)
    if tokens.dtype != torch.int64:
        refuse(function, "tokens", "be int64", tokens.dtype, TypeError)
    shape = list(hidden.shape)
    if len(shape) not in (2, 3) or shape[-1] != d_model:
        refuse(function, "hidden", f"be [N, {d_model}] or [B, T, {d_model}]", shape)
    count = math.prod(shape[:-1])
    if tokens.shape != hidden.shape[:-1] and tokens.shape != (count,):
        must = f"have the shape {shape[:-1]} of hidden without its last dimension"
        refuse(function, "tokens", must, list(tokens.shape))
    for name, tensor in (("hidden", hidden), ("tokens", tokens)):
        if tensor.device != device:
            refuse(function, name, f"be on the device {device}", tensor.device)
    if count > 0:
        for extreme in torch.stack(tokens.aminmax()).tolist():
            if not 0 <= extreme < vocab_size:
                refuse(function, "tokens", f"be at least 0 and below {vocab_size}", extreme)
    return hidden.detach().reshape(-1, d_model), tokens.reshape(-1)


def gram(function: str, rows: Tensor) -> Tensor:
    """rowsᵀ rows [d, d], float64; ValueError where that is not finite. Waits for the device.

    In float64 throughout: of float32 rows every product is exact, and no setting that makes float32
    products faster and coarser (TF32, bfloat16) plays a part.
    """
    total = whole_gram(rows)
    if not bool(total.isfinite().all()):
        bad = rows[~rows.isfinite()]
        among = f"{bad[0].item()} among {rows.numel()} values" if len(bad) else ""
        refuse(function, "hidden", "be finite", among or "squares beyond float64")
    return total


def add_by_token(sums: Tensor, rows: Tensor, tokens: Tensor) -> None:
    """sums[v] += the rows whose token is v; [V, d], float64, the same bits for any thread count."""
    rows = _with_neighbours(rows)
    for some, of_some in zip(rows.split(SORT_BLOCK), tokens.split(SORT_BLOCK), strict=True):
        order = _stable_order(of_some, len(sums))
        torch.ops.fusedstep.segment_sum_(sums, some, order, of_some[order])


def _stable_order(tokens: Tensor, vocab_size: int) -> Tensor:
    """What puts the tokens in ascending order and leaves equal ones as they are.

    NumPy sorts 16 bits by their digits, in a fifth of the time that torch needs for 64.
    """
    if tokens.is_cuda or vocab_size > 1 << 16:
        return torch.sort(tokens, stable=True).indices
    return torch.from_numpy(tokens.numpy().astype(np.uint16).argsort(kind="stable"))


def _with_neighbours(rows: Tensor) -> Tensor:
    """The same rows with neighbouring elements of a row neighbours in memory."""
    return rows if rows.stride(1) == 1 or rows.shape[1] < 2 else rows.contiguous()
