"""Each family of CUDA kernels once, on small problems of odd sizes: its inputs and what it makes.

bench.gpu.smoke compares the results with the CPU's; compute-sanitizer watches the same calls. Of
what NVIDIA's libraries compute, only the last family has any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

import fusedstep
from bench.gpu.checks import Scale
from bench.gpu.forms import FORMS, SMALLEST

OPS = torch.ops.fusedstep
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (0, 1, 255, 1000, 33000)  # the last one has two chunks
# Rows and columns of matrices; the last have several tiles, pieces of rows and strips of a row.
SHAPES = ((1, 1), (33, 7), (300, 70), (2000, 130))
ADAMW, CLIP = fusedstep.AdamW, {"max_norm": 1.0}
Dtypes = Sequence[tuple[torch.dtype, torch.dtype]]  # of parameters and of their gradients
Results = Iterator[tuple[str, Tensor]]
Make = Callable[[str, Scale], Results]  # takes the device


@dataclass(frozen=True)
class Family:
    """Kernels that stand or fall together."""

    name: str
    make: Make
    tolerance: float = 0.0  # of the largest element of a result; 0: every bit


def params_on(device: str, pairs: Dtypes, scale: Scale) -> list[Tensor]:
    """Parameters with gradients, of every size and pair of dtypes."""
    generator = torch.Generator().manual_seed(0)
    params = []
    sizes = SIZES[:-1] if scale == "quick" else SIZES
    for at, ((param_dtype, grad_dtype), size) in enumerate(product(pairs, sizes)):
        skew = at % 3  # some begin after an aligned address
        room = torch.randn(2, size + skew, generator=generator)
        param = room[0].to(device, param_dtype)[skew:].detach().requires_grad_()
        param.grad_dtype = None  # any may be assigned
        param.grad = room[1].to(device, grad_dtype)[skew:]
        params.append(param)
    return params


def norms(device: str, scale: Scale) -> Results:
    """The norm and the clip by themselves."""
    for norm_type in (2.0, 1.0, math.inf):
        params = params_on(device, tuple(product(DTYPES, DTYPES)), scale)
        yield f"norm {norm_type}", fusedstep.get_total_norm(params, norm_type)
        fusedstep.clip_grad_norm_(params, 1.0, norm_type)
        for i, param in enumerate(params):
            assert param.grad is not None
            yield f"clip {norm_type}, grad {i}", param.grad


def qk_clips(device: str, scale: Scale) -> Results:
    """Weights of four heads, some above the threshold, row by row and column by column."""
    for (rows, width), dtype in product(shapes(scale), DTYPES):
        weight = matrices(4 * rows, width, device, 1)[0, : 4 * rows].to(dtype)
        weights = [weight.clone(), weight.clone().mT.contiguous().mT, weight[:, :-1], weight[:, -1]]
        logits = torch.tensor([30.0, 1.0, math.nan, 7.5], device=device)
        fusedstep.qk_clip_(weights, [logits] * len(weights), 5.0)
        for i, clipped in enumerate(weights):
            yield f"QK-Clip {4 * rows}x{width} {dtype}: {i}", clipped


def steps(
    optimizer: Callable[..., torch.optim.Optimizer], options: Mapping[str, Any], pairs: Dtypes
) -> Make:
    """Two steps of an optimizer: parameters and states."""

    def make(device: str, scale: Scale) -> Results:
        params = params_on(device, pairs, scale)
        stepping = optimizer(params, **options)
        for _ in range(2):
            stepping.step()
        for i, param in enumerate(params):
            yield f"param {i}", param.detach()
            for key, value in stepping.state[param].items():
                yield f"{key} of param {i}", value

    return make


def all_of(*makes: Make) -> Make:
    """One after another."""

    def make(device: str, scale: Scale) -> Results:
        for at, each in enumerate(makes):
            for name, result in each(device, scale):
                yield f"{at}: {name}", result

    return make


def matrices(rows: int, width: int, device: str, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(rows + width)
    return torch.randn(count, rows + width, width, generator=generator).to(device)


def shapes(scale: Scale) -> Sequence[tuple[int, int]]:
    return SHAPES[:-1] if scale == "quick" else SHAPES


def grams(device: str, scale: Scale) -> Results:
    for rows, width in shapes(scale):
        X = matrices(rows, width, device)
        for name, given in (("rows", X), ("columns", X.mT.contiguous().mT)):
            gram = torch.zeros(3, width, width, dtype=torch.float64, device=device)
            OPS.gram_(gram, given)
            yield f"{rows}x{width}, by {name}", gram.tril()


def ranks(device: str, scale: Scale) -> Results:
    """What decides about Gram matrices and eigenvalues."""
    for rows, width in shapes(scale):
        X = matrices(rows, width, "cpu").double()
        gram = (X.mT @ X).to(device)
        none = torch.zeros(3, dtype=torch.float64, device=device)
        values = gram.diagonal(dim1=1, dim2=2).contiguous()
        for op, found in (
            ("certify", OPS.certify(gram, gram, none == 0, none, none, rows)),
            ("truncate", OPS.truncate_scale(values, gram, none, none, rows)),
        ):
            for i, result in enumerate(found):
                yield f"{op} {rows}x{width}: {i}", result


def tiny_inverses(device: str, scale: Scale) -> Results:
    for rows, width in shapes(scale):
        X = matrices(rows, width, device, 5)[:, : min(rows, 32), : min(width, 32)].contiguous()
        none = torch.zeros(5, dtype=torch.float64, device=device)
        for A in (X, X.double(), X.mT.contiguous(), torch.zeros_like(X)):
            for jacobi in (False, True):
                for i, result in enumerate(OPS.pinv_tiny(A, none, none, jacobi)):
                    yield f"{tuple(A.shape)} {A.dtype}, jacobi {jacobi}: {i}", result


def sums_by_token(device: str, scale: Scale) -> Results:
    for rows, width in shapes(scale):
        hidden = matrices(rows, width, device)[0]
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(5, (len(hidden),), generator=generator).to(device)
        order = torch.sort(tokens, stable=True).indices
        sums = torch.zeros(5, width, dtype=torch.float64, device=device)
        OPS.segment_sum_(sums, hidden, order, tokens[order])
        yield f"{rows}x{width}", sums


def softmax(device: str, scale: Scale) -> Results:
    """Of `rows` classes for `width` tokens."""
    for (rows, width), dtype in product(shapes(scale), (torch.float32, torch.float64)):
        generator = torch.Generator().manual_seed(2)
        logits = torch.randn(width, rows + 1, generator=generator).to(device, dtype)[:, 1:]
        tokens = torch.randint(rows, (width,), generator=generator).to(device)
        squares = torch.ones(width, dtype=torch.float64, device=device)
        label = f"{rows}x{width} {dtype}"
        yield f"losses {label}", OPS.softmax_losses(logits, tokens)
        directions = logits.clone()
        yield f"squares {label}", OPS.softmax_directions_(directions, tokens)
        yield f"directions {label}", directions
        for gram in (None, torch.eye(width, dtype=dtype, device=device)):
            moved = logits.clone()
            OPS.root_steps_(moved, tokens, squares, gram, 0.0, True)
            yield f"root steps {label}, gram {gram is not None}", moved


def solvers(device: str, scale: Scale) -> Results:
    """What calls cuSOLVER and cuBLAS."""
    for rows, width in shapes(scale):
        X = matrices(rows, width, device).double()
        for driver in ("auto", "cholesky", "eigh", "qr_svd"):
            P = fusedstep.pinv(X, driver=driver)
            yield f"pinv {rows}x{width}, {driver}", P @ X
        hidden, vocabulary = X[0].float(), 11
        tokens = torch.arange(len(hidden), device=device) % vocabulary
        weight = fusedstep.lm_head.least_squares(hidden, tokens, vocabulary)
        yield f"least squares {rows}x{width}", weight
        start = torch.zeros(vocabulary, width, device=device)
        yield (
            f"newton {rows}x{width}",
            fusedstep.lm_head.newton_components(start, hidden, tokens)[0],
        )


PLAIN = tuple(zip(DTYPES, DTYPES, strict=True))
ALIKE = PLAIN[:1]
FAMILIES = (
    Family("norm and clips", all_of(norms, qk_clips)),
    Family(
        "step, every dtype", steps(ADAMW, CLIP | {"amsgrad": True}, tuple(product(DTYPES, DTYPES)))
    ),
    Family(
        "other rules",
        all_of(
            steps(fusedstep.RMSprop, {**CLIP, "momentum": 0.9, "centered": True}, ALIKE),
            steps(fusedstep.SGD, CLIP | {"momentum": 0.9}, ALIKE),
            steps(fusedstep.Adagrad, CLIP, ALIKE),
            steps(fusedstep.Lion, CLIP, ALIKE),
        ),
    ),
    Family(
        "stored in fewer bits",
        all_of(
            *(
                steps(ADAMW, {**CLIP, **form.options}, ((form.dtype, form.dtype),))
                for form in FORMS
            ),
            steps(
                ADAMW,
                {**CLIP, "ema_decay": 0.9, **SMALLEST.options},
                ((SMALLEST.dtype, torch.float32),),
            ),
        ),
    ),
    Family("tiny inverses", tiny_inverses),
    Family("ranks", ranks),
    Family("sums by token", sums_by_token),
    Family("softmax", softmax),
    # The sum of a Gram matrix takes another order on a GPU.
    Family("Gram matrices", grams, tolerance=1e-13),
    Family("solvers", solvers, tolerance=1e-4),
)
OURS = len(FAMILIES) - 1  # have kernels of this project alone
