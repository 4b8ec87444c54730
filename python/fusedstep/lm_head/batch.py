"""Hidden states and the tokens they predict: checks, the two sums over them, ridge inverses.

The sums are G = XᵀX of the hidden states X, and by token the sum of the hidden states before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse, require_dense, require_values
from fusedstep.fakes import register_fake
from fusedstep.linalg.numerics import whole_gram

SORT_BLOCK = 65536  # tokens sorted at a time, so that memory does not grow with their number


def require_batch(
    function: str, hidden: Any, tokens: Any, d_model: int, vocab_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`hidden` as [N, d_model] and `tokens` as contiguous [N], checked. Waits for their device.

    `tokens` are int64 in [0, vocab_size), of hidden's shape without its last dimension, or flat.
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
        require_values(function, "tokens", tokens)
        for extreme in torch.stack(tokens.aminmax()).tolist():
            if not 0 <= extreme < vocab_size:
                refuse(function, "tokens", f"be at least 0 and below {vocab_size}", extreme)
    # The ops and NumPy read neighbouring int64 in memory, as they are.
    return hidden.detach().reshape(-1, d_model), tokens.reshape(-1).resolve_neg().contiguous()


def require_scale(function: str, value: Any) -> float:
    """`value` as a finite float other than 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        refuse(function, "scale", "be a number", type(value).__name__, TypeError)
    scale = float(value)
    if scale == 0 or scale - scale != 0:
        refuse(function, "scale", "be finite and not 0", scale)
    return scale


def gram(function: str, rows: Tensor) -> Tensor:
    """rowsᵀ rows [d, d], float64; ValueError if that is not finite. Waits for the device.

    In float64 throughout: products of float32 rows are exact, and settings that make float32
    products faster and coarser (TF32, bfloat16) have no effect.
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
    for some, of_some in in_blocks(SORT_BLOCK, rows, tokens):
        order = _stable_order(of_some, len(sums))
        torch.ops.fusedstep.segment_sum_(sums, some, order, of_some[order])


def in_blocks(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors cut along their first dimension, `size` at a time, side by side."""
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def _stable_order(tokens: Tensor, vocab_size: int) -> Tensor:
    """The order that sorts the tokens and leaves equal ones in place.

    NumPy sorts 16 bits by their digits, in a fifth of the time that torch needs for 64.
    """
    if tokens.is_cuda or vocab_size > 1 << 16:
        return torch.sort(tokens, stable=True).indices
    return torch.from_numpy(tokens.numpy().astype(np.uint16).argsort(kind="stable"))


def _with_neighbours(rows: Tensor) -> Tensor:
    """The same rows, with the elements of a row contiguous in memory."""
    return rows if rows.stride(1) == 1 or rows.shape[1] < 2 else rows.contiguous()


@register_fake("segment_sum_")
def _(sums: Tensor, rows: Tensor, order: Tensor, ids: Tensor) -> None:
    return None


class Spectrum(NamedTuple):
    """G = vectors diag(values) vectorsᵀ: `[d]`, none negative, and `[d, d]`."""

    values: Tensor
    vectors: Tensor


def spectrum(gram: Tensor) -> Spectrum:
    """The spectrum of a positive semidefinite matrix; what rounding made negative is zero."""
    values, vectors = torch.linalg.eigh(gram)
    return Spectrum(values.clamp(min=0), vectors)


def kept(of: Spectrum, ridge: Tensor, rtol: float) -> Tensor:
    """Which eigenvalues of G + ridge I exceed rtol times the largest: `[*, d]` for ridge `[*]`."""
    shifted = of.values + ridge[..., None]
    return shifted > rtol * shifted[..., -1:]


def inverses(of: Spectrum, ridge: Tensor, rtol: float) -> Tensor:
    """(G + ridge I)⁺ `[*, d, d]` for each of `ridge` `[*]`, at the cost of products only."""
    shifted = of.values + ridge[..., None]
    inverted = torch.where(kept(of, ridge, rtol), 1 / shifted, 0.0)
    return (of.vectors * inverted[..., None, :]) @ of.vectors.mT


def certain_inverse(gram: Tensor, ridge: float, rtol: float) -> Tensor | None:
    """(G + ridge I)⁻¹ where no eigenvalue can count as zero, else None. Waits for the device.

    The largest eigenvalue is at most |M|_F and the smallest at least 1 / |M⁻¹|_F, so the answer is
    that of `inverses`, for a fraction of what eigh takes.
    """
    matrix = gram.clone()
    matrix.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        return None
    inverse = torch.cholesky_inverse(factor)
    condition = torch.linalg.matrix_norm(matrix) * torch.linalg.matrix_norm(inverse)
    return inverse if bool(condition * (rtol + _C.gram_error(0, len(gram))) < 1) else None
