"""Newton-Schulz iterations, which orthogonalize the directions of Muon's momentum.

One iteration is X <- P X with P = a + b R + c R^2 and R = X X^T. Three things make it cheaper than
it looks:

- R and its polynomials are symmetric. The product of two of them is symmetric, too, and only the
  tiles on and below its diagonal are computed: in bfloat16 by kernels/optim/symmetric.h, in float32
  as a few large blocks.
- X is the wider of the matrix [m, n] and its transpose, so R is only m x m. Several iterations can
  share their products with X: R <- P R P does to R what X <- P X would, Q <- P Q collects the
  polynomials, and X <- Q X applies them all.
- Matrices of one shape share a batch, as long as it fits in a CPU's cache.

Multiplications of `span` iterations, where s, 1/2 to 1, is the share of a symmetric product that is
computed:

    torch.optim.Muon         span (2 m^2 n + m^3)
    one by one               span ((s + 1) m^2 n + s m^3)
    sharing                  (s + 1) m^2 n + s (4 span - 3) m^3

A rounding error of R grows by a^2, about 12 times, with each iteration that R goes through without
X. In bfloat16 this allows two iterations, in float32 five.

`_plan` picks the cheapest way by what its products cost. Measured on one core with AVX512_BF16, in
the time of one multiply-add of torch's large products in bfloat16, of which it does 110e9 a second:

    product of                                multiply-add       call
    bfloat16, torch                                1           1 600 000
    bfloat16, kernels/optim/symmetric.h            1.2           400 000
    float32, torch                                 2             260 000

So the smallest matrices are iterated on in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fusedstep.fakes import register_fake
from fusedstep.switches import numerical

Coefficients = tuple[float, float, float]

# Elements of a batch. On a GPU, 16 matrices of 1024 x 1024 should keep all multiprocessors busy; a
# model of a billion parameters has 60 such batches for its ranks to share. Neither was measured. On
# a CPU, iterates and Gram matrices stay in the cache of a core.
MAX_ELEMENTS, CACHED_ELEMENTS = 2**24, 2**18
# From how many rows for each thread torch's products are cut into blocks: halves, and quarters on
# the diagonal. Smaller blocks would lose more speed than they save multiplications.
HALVES, QUARTERS = 512, 768
TILE = 16  # rows of a tile of kernels/optim/symmetric.cpp
# The costs above: of a multiply-add of its tiles, and of calls.
TILED = 1.2
CALL, CALL_OF_TILES, CALL_IN_BFLOAT16 = 0.26e6, 0.4e6, 1.6e6
# How often a rounding error of R, 2^-24 or 2^-9, may double before it counts.
DOUBLINGS = {torch.float32: 15.0, torch.bfloat16: 4.0}

_SYMMETRIC = torch.ops.fusedstep.symmetric_product.default


@register_fake("symmetric_product")
def _(A: Tensor, B: Tensor, C: Tensor | None, beta: float, alpha: float) -> Tensor:
    return A.new_empty(*A.shape[:-1], A.shape[-2])


class Iteration(NamedTuple):
    """The arguments of `orthogonalize_` after the matrices."""

    coefficients: Coefficients
    steps: int
    eps: float


class Kind(NamedTuple):
    """What matrices of one batch have in common."""

    rows: int
    columns: int
    iteration: Iteration


class Plan(NamedTuple):
    """How matrices of one shape are iterated on."""

    dtype: torch.dtype  # of X
    depth: int  # how often torch's symmetric products are cut in halves
    spans: list[int]  # iterations that share their products with X, in turn
    shared: torch.dtype = torch.float32  # of R where a span is longer than one
    tiled: bool = False  # whether symmetric products in bfloat16 are not torch's


@numerical
def orthogonalize_(
    matrices: Sequence[Tensor],
    coefficients: Coefficients,
    steps: int,
    eps: float,
    max_elements: int = MAX_ELEMENTS,
) -> None:
    """Replaces each U S V^T by U S' V^T with S' near 1.

    The quintic iteration X <- a X + (b R + c R^2) X with R = X X^T, from X / max(|X|, eps), of
    Jordan 2024, https://kellerjordan.github.io/posts/muon/, in bfloat16, as in torch.optim.Muon, or
    on a CPU partly in float32.

    Args:
        matrices: Matrices [m, n] on one device, of any shapes, dtypes and layouts; overwritten.
        coefficients: The numbers a, b, c of the formula.
        steps: Number of iterations.
        eps: Smallest Frobenius norm to divide by.
        max_elements: Largest number of elements of a batch; a larger matrix is a batch of its own.
    """
    if not matrices:
        return
    device, iteration = matrices[0].device.type, Iteration(coefficients, steps, eps)
    kinds = [Kind(rows, columns, iteration) for rows, columns in (m.shape for m in matrices)]
    for batch in batches_of(kinds, device, max_elements):
        chunk = [matrices[i] for i in batch]
        rows, columns = chunk[0].shape
        if rows > columns:
            chunk = [matrix.mT for matrix in chunk]
        m, n = sorted((rows, columns))
        plan = _plan(m, n, steps, coefficients[0], device, torch.get_num_threads())
        x = _together(chunk, plan.dtype)
        norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
        x = x / norm.clamp_(min=eps)  # so that no singular value exceeds 1
        x = _iterate(x, coefficients, plan)
        torch._foreach_copy_(chunk, [x] if len(chunk) == 1 else x.unbind())


def batches_of(
    kinds: Sequence[Kind], device_type: str, max_elements: int = MAX_ELEMENTS
) -> list[list[int]]:
    """Cuts matrices of equal kinds into batches, each a list of indices; leaves empty ones out.

    torch's products may round by what shares a batch. Batches depend on this list alone, so that
    matrices without a gradient and matrices on other ranks change no bit.
    """
    limit = max_elements if device_type != "cpu" else min(max_elements, CACHED_ELEMENTS)
    by_kind: dict[Kind, list[int]] = {}
    for i, kind in enumerate(kinds):
        if kind.rows and kind.columns:
            by_kind.setdefault(kind, []).append(i)
    batches: list[list[int]] = []
    for kind, equal in by_kind.items():
        count = max(1, limit // (kind.rows * kind.columns))
        batches += [equal[begin : begin + count] for begin in range(0, len(equal), count)]
    return batches


def _together(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """One matrix or a batch, row by row in memory; the one itself if it is so already."""
    if len(matrices) == 1:
        return matrices[0].to(dtype).contiguous()
    return torch.stack([matrix.to(dtype) for matrix in matrices])


# --- the choice -----------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _plan(m: int, n: int, steps: int, a: float, device_type: str, threads: int) -> Plan:
    """The cheapest way for matrices [m, n] with m <= n."""
    if device_type != "cpu":  # nothing else has been measured
        return Plan(torch.bfloat16, 0, [1] * steps)
    cpu = _cpu()
    depth = (m >= threads * HALVES) + (m >= threads * QUARTERS)
    plans = []
    for dtype in (torch.float32, torch.bfloat16) if cpu.price > 1 else (torch.float32,):
        plans.append(Plan(dtype, depth, [1] * steps, tiled=cpu.tiles))
        for shared in dict.fromkeys((dtype, torch.float32)):
            # With these coefficients an error of R doubles so often in an iteration.
            growth = 2 * math.log2(max(abs(a), 1.0))
            longest = 1 + int(min(DOUBLINGS[shared] / growth if growth else steps, steps))
            full, rest = divmod(steps, longest)
            spans = [longest] * full + [rest] * (rest > 0)
            plans.append(Plan(dtype, depth, spans, shared, cpu.tiles))
    return min(plans, key=lambda plan: _cost(plan, m, n, threads, cpu.price))


def _cost(plan: Plan, m: int, n: int, threads: int, price: float) -> float:
    """What the products of a plan cost, `price` that of a multiply-add in float32."""

    def product(dtype: torch.dtype, width: int, symmetric: bool) -> float:
        rate, call = (price, CALL) if dtype == torch.float32 else (1.0, CALL_IN_BFLOAT16)
        share = calls = 1.0
        if symmetric and plan.tiled and dtype == torch.bfloat16:
            rate, call, share = TILED, CALL_OF_TILES, (1 + TILE / m) / 2
        elif symmetric:
            share, calls = (1 + 0.5**plan.depth) / 2, 2 ** (plan.depth + 1) - 1
        return rate * share * m * m * width / threads + calls * call

    cost = 0.0
    for span in plan.spans:
        inside = plan.dtype if span == 1 else plan.shared
        cost += product(inside, n, True) + (4 * span - 3) * product(inside, m, True)
        cost += product(plan.dtype, n, False) + (span * CALL if span > 1 else 0)  # adding a to P
    return cost


class Cpu(NamedTuple):
    """How this CPU multiplies."""

    price: float  # products in bfloat16 in the time of one in float32
    tiles: bool  # whether symmetric products are faster by our tiles than whole by torch


@cache
def _cpu() -> Cpu:
    if not torch.backends.mkldnn.is_available():
        return Cpu(1.0, False)  # torch multiplies bfloat16 without the instructions for it
    if torch.cpu._is_amx_tile_supported():
        return Cpu(8.0, False)  # by peak rates; not measured
    pairs = torch.cpu._is_avx512_bf16_supported()
    return Cpu(2.0 if pairs else 1.0, pairs)


# --- the iteration --------------------------------------------------------------------------------


def _iterate(x: Tensor, coefficients: Coefficients, plan: Plan) -> Tensor:
    """The iterations on one matrix [m, n] or on a batch [k, m, n] with m <= n."""
    a, b, c = coefficients
    for span in plan.spans:
        wide = x if span == 1 else x.to(plan.shared)
        gram = _symmetric(wide, wide, plan)
        p = _symmetric(gram, gram, plan, gram, b, c)
        if span == 1:
            x = _multiply_add(x, p, x, a)
            continue
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        q = p
        for _ in range(span - 1):
            gram = _symmetric(p, _symmetric(p, gram, plan), plan)
            p = _symmetric(gram, gram, plan, gram, b, c)
            p.diagonal(dim1=-2, dim2=-1).add_(a)
            q = _symmetric(p, q, plan)
        x = q.to(x.dtype) @ x
    return x


def _symmetric(
    A: Tensor,
    B: Tensor,
    plan: Plan,
    C: Tensor | None = None,
    beta: float = 1.0,
    alpha: float = 1.0,
) -> Tensor:
    """alpha A B^T + beta C, which the caller knows to be symmetric, as C is."""
    if plan.tiled and A.dtype == torch.bfloat16:
        product: Tensor = _SYMMETRIC(A, B, C, beta, alpha)
        return product
    B = B.mT
    if plan.depth == 0:
        return A @ B if C is None else _multiply_add(C, A, B, beta, alpha)
    result = A.new_empty(len(A), len(A))  # one matrix: HALVES rows are too many for a batch
    for rows, columns in _blocks(0, len(A), plan.depth):
        block = result[rows, columns]
        if C is None:
            torch.mm(A[rows], B[:, columns], out=block)
        else:
            torch.addmm(C[rows, columns], A[rows], B[:, columns], beta=beta, alpha=alpha, out=block)
        if rows != columns:
            result[columns, rows] = block.mT
    return result


def _blocks(begin: int, end: int, depth: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of blocks that cover what is on and below the diagonal."""
    if depth == 0:
        yield slice(begin, end), slice(begin, end)
    else:
        middle = (begin + end) // 2
        yield from _blocks(begin, middle, depth - 1)
        yield from _blocks(middle, end, depth - 1)
        yield slice(middle, end), slice(begin, middle)


def _multiply_add(C: Tensor, A: Tensor, B: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """alpha A B + beta C, of matrices or of batches."""
    function = torch.addmm if A.dim() == 2 else torch.baddbmm
    return function(C, A, B, beta=beta, alpha=alpha)
