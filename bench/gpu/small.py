"""A little of everything, to be run under compute-sanitizer: dtypes, rules, forms, odd sizes.

Of the closed form, only the kernels of this project: cuSOLVER's are NVIDIA's.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch

import fusedstep
from bench.gpu.forms import FORMS, SMALLEST
from bench.gpu.trials import Pairs

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (0, 1, 255, 1000, 33000)  # the last one has two chunks
ADAMW, CLIP = fusedstep.AdamW, {"max_norm": 1.0}
# Every pair of dtypes; then other rules and what is stored in fewer bits, on one dtype.
PAIRS = tuple(product(DTYPES, DTYPES))
RUNS: tuple[tuple[type, dict[str, Any], Pairs], ...] = (
    (ADAMW, {}, PAIRS),
    (ADAMW, CLIP | {"norm_type": 1.0, "nonfinite": "skip"}, PAIRS),
    (ADAMW, CLIP | {"norm_type": math.inf, "amsgrad": True}, PAIRS),
    (fusedstep.RMSprop, CLIP | {"momentum": 0.9, "centered": True}, PAIRS[:1]),
    *((ADAMW, {**CLIP, **form.options}, ((form.dtype, form.dtype),)) for form in FORMS),
    (ADAMW, {"ema_decay": 0.9, **SMALLEST.options}, ((SMALLEST.dtype, torch.float32),)),
)


# Rows and columns of matrices; the last have several tiles, pieces of rows and strips of a row.
SHAPES = ((1, 1), (33, 7), (300, 70), (2000, 130))
OPS = torch.ops.fusedstep


def last_layer(rows: int, width: int, device: str, generator: torch.Generator) -> None:
    """The sums of least squares, and the softmax of `rows` classes for `width` tokens."""
    hidden = torch.randn(rows, width, generator=generator).to(device)
    OPS.gram_(torch.zeros(width, width, dtype=torch.float64, device=device), hidden)
    tokens = torch.randint(5, (rows,), generator=generator).to(device)
    order = torch.sort(tokens, stable=True).indices
    sums = torch.zeros(5, width, dtype=torch.float64, device=device)
    OPS.segment_sum_(sums, hidden, order, tokens[order])
    for dtype in (torch.float32, torch.float64):
        logits = torch.randn(width, rows + 1, generator=generator).to(device, dtype)[:, 1:]
        tokens = torch.randint(rows, (width,), generator=generator).to(device)
        squares = torch.ones(width, dtype=torch.float64, device=device)
        OPS.softmax_losses(logits, tokens)
        OPS.softmax_directions_(logits.clone(), tokens)
        for gram in (None, torch.eye(width, dtype=dtype, device=device)):
            OPS.root_steps_(logits.clone(), tokens, squares, gram, 0.0, True)


def inverses(rows: int, width: int, device: str, generator: torch.Generator) -> None:
    """What decides about Gram matrices and eigenvalues, and the inverses of tiny matrices."""
    X = torch.randn(3, rows + width, width, generator=generator).to(device)
    none = torch.zeros(3, dtype=torch.float64, device=device)
    gram = torch.zeros(3, width, width, dtype=torch.float64, device=device)
    OPS.gram_(gram, X)
    OPS.gram_(torch.zeros_like(gram), X.mT.contiguous().mT)
    OPS.certify(gram, gram, none == 0, none, none, rows)
    OPS.truncate_scale(gram.diagonal(dim1=1, dim2=2).contiguous(), gram, none, none, rows)
    tiny = X[:, : min(rows, 32), : min(width, 32)].contiguous()
    for A in (tiny, tiny.double(), tiny.mT.contiguous(), torch.zeros_like(tiny)):
        for jacobi in (False, True):
            OPS.pinv_tiny(A, none, none, jacobi)


def main(device: str = "cuda") -> None:
    generator = torch.Generator().manual_seed(0)
    for optimizer, options, pairs in RUNS:
        params = []
        for at, ((param_dtype, grad_dtype), size) in enumerate(product(pairs, SIZES)):
            skew = at % 3  # some begin after an aligned address
            room = torch.randn(2, size + skew, generator=generator)
            param = room[0].to(device, param_dtype)[skew:].detach().requires_grad_()
            param.grad_dtype = None  # any may be assigned
            param.grad = room[1].to(device, grad_dtype)[skew:]
            params.append(param)
        step = optimizer(params, **options).step
        for _ in range(2):
            step()
        norm = fusedstep.clip_grad_norm_(params, 1.0)
        print(options, "norm", float(norm), float(fusedstep.get_total_norm(params)))
    for shape in SHAPES:
        last_layer(*shape, device, generator)
        inverses(*shape, device, generator)
    print("closed form", len(SHAPES), "shapes")


if __name__ == "__main__":
    main()
