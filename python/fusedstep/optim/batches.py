"""What all ranks know of Muon's matrices: their batches, and which rank owns each.

Nothing is negotiated: every rank derives this from the parameters' shapes and placements. So a
matrix takes part whether or not it has a gradient on some rank, and no rank can wait for another
that has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, product
from typing import Any, NamedTuple

import torch

from fusedstep.optim.matrices import Division
from fusedstep.optim.newton_schulz import Iteration, Kind, batches_of

Box = tuple[range, ...]  # the indices of a part of a tensor, for each dimension


class Item(NamedTuple):
    """What all ranks know of a parameter."""

    shape: torch.Size
    strides: tuple[int, ...]
    placements: tuple[Any, ...]
    division: Division
    iteration: Iteration
    beta2: float | None = None  # NorMuon's, where rows have moments


class Matrix(NamedTuple):
    """One of the matrices of a parameter."""

    item: int
    number: int  # among those of the parameter
    box: Box
    kind: Kind


def matrices_of(items: Sequence[Item]) -> list[Matrix]:
    """The matrices of all parameters, those of one in the order of `Division.matrices`."""
    matrices = []
    for i, (shape, _, _, division, iteration, _) in enumerate(items):
        row = division.rows(len(shape))
        rows, columns = division.shape(shape)
        sizes = division.sizes(rows)
        ends = list(accumulate(sizes))
        others = tuple(map(range, shape[row + 1 :]))
        each_of_stack = product(*([range(k, k + 1) for k in range(n)] for n in shape[:row]))
        boxes = [
            (*one, range(end - size, end), *others)
            for one in each_of_stack
            for size, end in zip(sizes, ends, strict=True)
        ]
        for number, box in enumerate(boxes):
            kind = Kind(sizes[number % len(sizes)], columns, iteration)
            matrices.append(Matrix(i, number, box, kind))
    return matrices


def batches_among(items: Sequence[Item], device: torch.device) -> list[list[Matrix]]:
    """The matrices of all parameters, cut into batches."""
    matrices = matrices_of(items)
    batches = batches_of([matrix.kind for matrix in matrices], device.type)
    return [[matrices[i] for i in batch] for batch in batches]


def owners_of(batches: Sequence[Sequence[Kind]], ranks: int) -> list[int]:
    """The rank that each batch goes to: the costliest first, each to the rank with the least.

    A batch counts by its share of all multiplications and, as much, by its share of all elements,
    which bounds the memory of a rank.
    """
    work = [sum(_multiplications(kind) for kind in batch) for batch in batches]
    size = [sum(kind.rows * kind.columns for kind in batch) for batch in batches]
    all_work, all_sizes = sum(work), sum(size)
    costs = [w * all_sizes + s * all_work for w, s in zip(work, size, strict=True)]  # exact
    loads, owners = [0] * ranks, [0] * len(batches)
    for i in sorted(range(len(batches)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def _multiplications(kind: Kind) -> int:
    """Those of an iteration, up to a factor."""
    m, n = sorted((kind.rows, kind.columns))
    return m * m * (2 * n + m)
