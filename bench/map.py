"""The group "map": everything that stands in for a function of torch, over the whole space.

Functions, numbers and sizes of tensors, shapes of matrices, ranks, dtypes: each cell against
torch's own functions, the step in the fastest form that torch documents. `bench.map_figure` draws
it. Narrow tensors are bfloat16: torch's state is then bfloat16 too, ours float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch

from bench import norm, pinv, step
from bench.case import Case, Shape, Side, Work
from bench.peers import Peer
from bench.peers.steps import optimizer_side
from bench.step_cases import ADAMW, MUON, RULES

SETS: dict[str, tuple[Shape, ...]] = {
    "10": ((10,),),
    "mlp": norm.SIZES["mlp"](),
    "148-small": ((128, 128), (128,)) * 74,
    **{name: norm.SIZES[name]() for name in ("400-small", "8M", "gpt2")},
}
HIDDEN: dict[str, tuple[Shape, ...]] = {  # for Muon, which takes matrices
    "64x64": ((64, 64),),
    "128x128": ((128, 128),),
    "16x256x256": ((256, 256),) * 16,
    "8x256x1024": ((256, 1024), (1024, 256)) * 4,
    "768x3072": ((768, 3072),),
}
NORMS = {  # of bench.norm, by the functions that they time
    "get_total_norm": "norm",
    "clip_grad_norm_": "clip",
    "clip_grad_norm_-unclipped": "unclipped",
}
SHAPES: tuple[Shape, ...] = (
    *[(3, 3), (16, 3, 3), (1024, 3, 3)],
    *[(8, 8), (16, 8, 8), (1024, 8, 8)],
    *[(16, 16), (32, 32), (16, 32, 32), (256, 32, 32), (32, 8)],
    *[(64, 64), (16, 64, 64), (100, 100), (16, 100, 100)],
    *[(200, 50), (16, 200, 50), (50, 200), (300, 300), (1000, 200), (1000, 1000)],
)
RANKS = {"full": 1.0, "half": 0.5, "tenth": 0.1}
COLUMNS = 4  # of the right-hand side of least squares
# At the usual rates most steps of bfloat16 parameters are rounded away, and torch rounds more than
# once in a step. At rates so many times as large results can be compared, and differ by less.
NARROW_RATE, NARROW_TOLERANCE = 50, 0.05


def torchs_side(work: Work, device: torch.device) -> Iterator[Side]:
    """The fastest form of its class that torch documents, after its clip."""
    rule = RULES[work.rule]
    yield optimizer_side(rule.against, work, device, partial(rule.theirs, **work.arguments))


TORCH = Peer("torch", ("torch",), torchs_side)


def tensor_cases() -> Iterator[Case]:
    """Norms and steps, over sets of tensors."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for (title, function), (of, shapes), name in product(NORMS.items(), SETS.items(), dtypes):
        yield norm.case_of(f"map/{title}/{of}/{name}", function, shapes, dtypes[name])
    rules = [rule for rule in RULES.values() if rule.title != "Lion"]  # torch has none
    steps = [(f"{ADAMW.title}+clip", ADAMW, True), *((rule.title, rule, False) for rule in rules)]
    for title, rule, clip in steps:
        for (of, shapes), name in product((HIDDEN if rule is MUON else SETS).items(), dtypes):
            narrow, arguments = dtypes[name].itemsize < 4, dict(rule.arguments)
            if narrow:
                arguments["lr"] *= NARROW_RATE
            work = Work(rule.name, arguments, "float32", clip, shapes, dtypes[name])
            case = step.case_of(f"map/{title}/{of}/{name}", work, [TORCH])
            yield replace(case, tolerance=NARROW_TOLERANCE) if narrow else case


def matrix_cases() -> Iterator[Case]:
    """`pinv` and `lstsq`, over shapes, dtypes and ranks."""
    for columns, shape, dtype, (name, part) in product(
        (None, COLUMNS), SHAPES, (torch.float32, torch.float64), RANKS.items()
    ):
        rank = None if part == 1 else max(1, round(part * min(shape[-2:])))
        form = f"{str(dtype).removeprefix('torch.')}-{name}"
        title = f"{'x'.join(map(str, shape))}/{form}"
        yield pinv.case_of(pinv.Problem(title, shape, dtype, rank, columns), "map")


def cases() -> Iterator[Case]:
    """All cells."""
    yield from tensor_cases()
    yield from matrix_cases()
