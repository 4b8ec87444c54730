"""The matrices of a parameter that Muon orthogonalizes one by one: stacks, splits, heads, kernels.

A parameter is a matrix [m, n], a stack [..., m, n], or a convolution's kernel [m, ...] whose other
dimensions are flattened into n columns. The rows of each matrix are cut into pieces (Q, K and V in
one weight), and each piece into heads. All of this depends on the parameter's shape and its group's
entries alone, so every holder of a whole direction cuts it in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_bool, require_count
from fusedstep.optim.hyperparameters import Group, label
from fusedstep.optim.memory import memory_layout

# The step's ratio to the rate, for a matrix of m rows and n columns: Jordan's, Liu et al. 2025,
# equation 4 (https://arxiv.org/abs/2502.16982), and Bernstein's.
RATIOS: dict[str, Callable[[int, int], float]] = {
    "original": lambda m, n: math.sqrt(max(1, m / n)),
    "match_rms_adamw": lambda m, n: 0.2 * math.sqrt(max(m, n)),
    "spectral_unclamped": lambda m, n: math.sqrt(m / n),
}


class Division(NamedTuple):
    """The entries of a parameter group that say which matrices its parameters hold."""

    split_sizes: tuple[int, ...] | None = None
    num_heads: int | tuple[int, ...] | None = None
    flatten: bool | None = None

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Division:
        """That of a group, whose entries have been checked."""
        sizes, heads, flatten = (group[key] for key in cls._fields)
        return cls(_as_tuple(sizes), _as_tuple(heads), flatten)

    def shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of each matrix, before its rows are cut."""
        if self.flatten:
            return shape[0], math.prod(shape[1:])
        return shape[-2], shape[-1]

    def pieces(self, rows: int) -> list[tuple[int, int]]:
        """For each piece of a matrix: how many heads it has, and the rows of each."""
        sizes = (rows,) if self.split_sizes is None else self.split_sizes
        heads = self.num_heads or 1
        counts = heads if isinstance(heads, tuple) else (heads,) * len(sizes)
        return [(count, size // count) for count, size in zip(counts, sizes, strict=True)]

    def whole(self, tensor: Tensor) -> list[Tensor]:
        """The matrices before their rows are cut, as views."""
        if self.flatten:
            # Columns in the order of memory: the orthogonal factor of X P is that of X, times P.
            order = sorted(range(1, tensor.dim()), key=lambda d: -tensor.stride()[d])
            return [tensor.permute(0, *order).view(self.shape(tensor.shape))]
        stack = [tensor]
        for _ in tensor.shape[:-2]:
            stack = [each for part in stack for each in part.unbind()]
        return stack

    def sizes(self, rows: int) -> list[int]:
        """The rows of each matrix that is cut from one of so many rows."""
        return [each for heads, each in self.pieces(rows) for _ in range(heads)]

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """The matrices that are orthogonalized one by one, as views."""
        sizes = self.sizes(self.shape(tensor.shape)[0])
        return [matrix for whole in self.whole(tensor) for matrix in whole.split(sizes)]

    def rows(self, dims: int) -> int:
        """The dimension, of so many, that is rows of matrices."""
        return 0 if self.flatten else dims - 2

    def columns(self, dims: int) -> tuple[int, ...]:
        """The dimensions, of so many, that are columns of matrices."""
        return tuple(range(1, dims)) if self.flatten else (dims - 1,)

    def column_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a tensor with one number for each row."""
        columns = self.columns(len(shape))
        return tuple(1 if d in columns else size for d, size in enumerate(shape))

    def column_placements(self, placements: Sequence[Any], dims: int) -> tuple[Any, ...]:
        """The placements of that column, of a DTensor with `dims` dimensions and `placements`."""
        if all(placement.is_replicate() for placement in placements):
            return tuple(placements)
        from torch.distributed.tensor import Replicate

        columns = self.columns(dims)
        return tuple(
            Replicate() if not placement.is_replicate() and placement.dim in columns else placement
            for placement in placements
        )

    def require(self, function: str, index: int, argument: str, param: Tensor) -> None:
        """Refuses a parameter that cannot be divided so; `index` is that of its group."""
        dims = param.dim()
        if dims < 2:
            must = "have two or more dimensions, or be in a group with use_muon=False"
            refuse(function, argument, must, tuple(param.shape))
        if dims > 3 and self.flatten is None:
            must = (
                "have two or three dimensions, or be in a group with flatten=True (a convolution's "
                "kernel is one matrix) or flatten=False (a stack of matrices)"
            )
            refuse(function, argument, must, tuple(param.shape))
        rows, _ = self.shape(param.shape)
        sizes = self.split_sizes
        if sizes is not None and sum(sizes) != rows:
            must = f"sum to the {rows} rows of {argument}"
            refuse(function, label(index, "split_sizes"), must, sizes)
        for size, (heads, each) in zip(sizes or (rows,), self.pieces(rows), strict=True):
            if heads * each != size:
                must = f"divide the {size} rows of {argument}"
                refuse(function, label(index, "num_heads"), must, self.num_heads)
        if self.flatten and not param.is_contiguous() and not self._flattens(param):
            must = "have one distance in memory between its columns where flatten=True"
            refuse(function, argument, must, f"strides {param.stride()}")

    def _flattens(self, param: Tensor) -> bool:
        try:
            self.whole(torch.empty_strided(param.shape, memory_layout(param), device="meta"))
        except RuntimeError:
            return False
        return True


def division_of(function: str, group: Group, index: int | None) -> Division:
    """The division of a group, or of the constructor's arguments; refuses what is none."""
    sizes, heads, flatten = (group[key] for key in Division._fields)
    if sizes is not None:
        where = label(index, "split_sizes")
        if not isinstance(sizes, (tuple, list)) or not sizes:
            refuse(function, where, "be None or a sequence of row counts", repr(sizes), TypeError)
        sizes = _counts(function, where, sizes)
    if heads is not None:
        where = label(index, "num_heads")
        if isinstance(heads, (tuple, list)):
            if len(heads) != len(sizes or ()):
                must = "be None, an int, or one int for each of split_sizes"
                refuse(function, where, must, repr(heads))
            heads = _counts(function, where, heads)
        else:
            heads = require_count(function, where, heads, 1)
    if flatten is not None:
        flatten = require_bool(function, label(index, "flatten"), flatten)
    return Division(sizes, heads, flatten)


def ratios_of(shape: Sequence[int], group: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Blocks of consecutive rows of a parameter's matrices: row counts, and step over rate."""
    division, ratio_of = Division.of(group), RATIOS[group["adjust_lr_fn"] or "original"]
    rows, columns = division.shape(shape)
    blocks: list[tuple[int, float]] = []
    for heads, each in division.pieces(rows):
        count, ratio = heads * each, ratio_of(each, columns) if each and columns else 0.0
        if blocks and blocks[-1][1] == ratio:
            count += blocks.pop()[0]
        blocks.append((count, ratio))
    return blocks


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _counts(function: str, where: str, values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(
        require_count(function, f"{where}[{i}]", value, 1) for i, value in enumerate(values)
    )
