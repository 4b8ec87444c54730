"""What bench.instructions counts: loops of the kernels, and what Python and C++ do around them.

A path with two sizes costs so many instructions for each unit by which they differ: what a call
costs beside its units drops out. A path with one size costs what a call does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fusedstep
from bench.host import Loop
from bench.measure import Call
from fusedstep import _C


class Counted(NamedTuple):
    """A call that is counted, and what it needs before each time, which is not."""

    call: Call
    before: Call = lambda: None


@dataclass(frozen=True)
class HotPath:
    """A call of one or two sizes; a unit of size is `units` of the unit that the table shows."""

    part: str  # "loops" or "host"
    name: str
    unit: str
    sizes: tuple[int, ...]
    work: Callable[[int], Counted]
    units: int = 1

    def cost(self, counts: Sequence[int]) -> float:
        """Instructions a unit, from those of a call of each size."""
        if len(self.sizes) == 1:
            return counts[0]
        return (counts[1] - counts[0]) / (self.units * (self.sizes[1] - self.sizes[0]))


# --- loops: over elements, multiply-adds, matrices ------------------------------------------------


def step(
    make: Callable[..., torch.optim.Optimizer],
    size: int,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Counted:
    """A step of one tensor."""
    param = torch.randn(size, dtype=dtype)
    param.grad = torch.randn(size, dtype=dtype)
    return Counted(make([param], **options).step)


def norm(size: int) -> Counted:
    tensors = [torch.randn(size)]
    return Counted(lambda: fusedstep.get_total_norm(tensors))


def clip(size: int) -> Counted:
    """The gradient's norm, and the pass that scales it."""
    param = torch.zeros(size)
    param.grad = grad = torch.zeros(size)
    return Counted(lambda: fusedstep.clip_grad_norm_([param], 1.0), lambda: grad.fill_(1))


def newton_schulz(count: int) -> Counted:
    """The symmetric product of Muon's iterations."""
    A = torch.randn(count, 64, 64).bfloat16()
    return Counted(lambda: torch.ops.fusedstep.symmetric_product(A, A, None, 0.0, 1.0))


def gram(count: int) -> Counted:
    rows, sums = torch.randn(count, 256, 64), torch.zeros(count, 64, 64, dtype=torch.float64)
    return Counted(lambda: torch.ops.fusedstep.gram_(sums, rows))


def pinv(rows: int, columns: int, count: int) -> Counted:
    A = torch.randn(count, rows, columns)
    return Counted(lambda: fusedstep.pinv(A))


def softmax(op: Callable[[Tensor, Tensor], Tensor], count: int) -> Counted:
    given, tokens = torch.randn(count, 4096), torch.zeros(count, dtype=torch.int64)
    logits = given.clone()
    return Counted(lambda: op(logits, tokens), lambda: logits.copy_(given))


adamw_bfloat16 = partial(step, fusedstep.AdamW, dtype=torch.bfloat16)
OF_ELEMENTS: dict[str, Callable[[int], Counted]] = {
    "AdamW": partial(step, fusedstep.AdamW),
    "AdamW, int8 state": partial(step, fusedstep.AdamW, state_dtype="int8"),
    "AdamW, bfloat16 state": partial(step, fusedstep.AdamW, state_dtype=torch.bfloat16),
    "AdamW, bfloat16": adamw_bfloat16,
    "AdamW, bfloat16, stochastic rounding": partial(adamw_bfloat16, stochastic_rounding=True),
    "AdamW, bfloat16, correction": partial(adamw_bfloat16, master="correction"),
    "Adam, amsgrad": partial(step, fusedstep.Adam, amsgrad=True),
    "SGD, momentum": partial(step, fusedstep.SGD, lr=0.1, momentum=0.9),
    "RMSprop, momentum, centered": partial(step, fusedstep.RMSprop, momentum=0.9, centered=True),
    "Lion": partial(step, fusedstep.Lion),
    "Adagrad": partial(step, fusedstep.Adagrad),
    "norm": norm,
    "norm and clip": clip,
}
# A call's own instructions vary by up to 1500: 0.006 for each element between these sizes.
ELEMENTS = (_C.CHUNK_SIZE, 9 * _C.CHUNK_SIZE)
SOFTMAX = torch.ops.fusedstep.softmax_losses, torch.ops.fusedstep.softmax_directions_
LOOPS = (
    *(HotPath("loops", name, "element", ELEMENTS, work) for name, work in OF_ELEMENTS.items()),
    HotPath("loops", "Newton-Schulz, 64 x 64", "multiply-add", (1, 3), newton_schulz, 64**3),
    HotPath("loops", "Gram matrix of 256 x 64", "multiply-add", (1, 3), gram, 256 * 64**2),
    HotPath("loops", "pinv, 8 x 8", "matrix", (64, 192), partial(pinv, 8, 8)),
    HotPath("loops", "pinv, 24 x 16", "matrix", (64, 192), partial(pinv, 24, 16)),
    HotPath("loops", "pinv, 64 x 48", "matrix", (2, 6), partial(pinv, 64, 48)),
    HotPath("loops", "softmax, losses", "logit", (4, 12), partial(softmax, SOFTMAX[0]), 4096),
    HotPath("loops", "softmax, directions", "logit", (4, 12), partial(softmax, SOFTMAX[1]), 4096),
)

# --- host: tensors of one element, with other gradients at every step, as backward makes them -----
# Not Muon's: torch's products are a part of it, and their code depends on the processor.


def fresh_gradients(make: Callable[[list[Tensor]], Call], count: int) -> Counted:
    loop = Loop(make, count)
    return Counted(loop.step, loop.exchange)


def adamw(params: list[Tensor]) -> Call:
    return fusedstep.AdamW(params, max_norm=1.0).step


def clip_grads(params: list[Tensor]) -> Call:
    return lambda: fusedstep.clip_grad_norm_(params, 1.0)


HOST = tuple(
    HotPath("host", f"{name}, {what}", unit, sizes, work)
    for name, work in {
        "AdamW with clip": partial(fresh_gradients, adamw),
        "clip_grad_norm_": partial(fresh_gradients, clip_grads),
        "pinv, 2 x 2": partial(pinv, 2, 2),
    }.items()
    for what, unit, sizes in (("one", "call", (1,)), ("each further", "tensor", (50, 150)))
    if unit == "call" or work.func is fresh_gradients
)
PATHS = {path.name: path for path in (*LOOPS, *HOST)}
