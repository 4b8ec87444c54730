"""Tensors in one process and the same ones spread over ranks, with equal gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.placement_types import Placement

import fusedstep
from tests.distributed.ranks import assert_same_on_all_ranks
from tests.distributed.side_by_side import whole
from tests.support.tensors import assert_same_bits


class On(NamedTuple):
    """The ranks that hold a DTensor, and what each of them holds."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]


def on(mesh: DeviceMesh, *placements: Placement) -> On:
    return On(mesh, placements)


def named_mesh(*shape: int, name: str = "dim") -> DeviceMesh:
    return init_device_mesh(
        "cpu", shape, mesh_dim_names=tuple(f"{name}{i}" for i in range(len(shape)))
    )


def placed(tensor: Tensor, where: On | None) -> Tensor:
    """This rank's part of `tensor`, which all ranks have: a copy of all of it for None."""
    if where is None:
        return tensor.clone()
    return distribute_tensor(tensor.clone(), *where, src_data_rank=None)


def whole_numbers(shapes: Sequence[Sequence[int]], seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Random ones whose sums and sums of squares are exact, in whatever order they are added."""
    generator = torch.Generator().manual_seed(seed)
    size = {"low": -8, "high": 9, "generator": generator}
    return [torch.randint(size=tuple(shape), **size).to(dtype) for shape in shapes]


class Twins:
    """Parameters of one process, and those of them that this rank has, spread as `where` says."""

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        where: Sequence[On | None],
        here: Collection[int] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = fusedstep.AdamW,
        dtype: torch.dtype = torch.float32,
        norm_groups: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        """`here`: the indices of the parameters that this rank has; None for all."""
        self.here = range(len(shapes)) if here is None else sorted(here)
        self.where, self.steps = where, 0
        values = whole_numbers(shapes, 0, dtype)
        self.alone = [nn.Parameter(value.clone()) for value in values]
        self.spread = [nn.Parameter(placed(values[i], where[i])) for i in self.here]
        options = {"lr": 0.1, "max_norm": 0.5} | options
        self.reference = optimizer(self.alone, **options)
        self.optimizer = optimizer(self.spread, norm_groups=norm_groups, **options)

    def set_gradients(self, missing: Collection[int] = ()) -> None:
        """Other ones each time, but none for the parameters with the indices `missing`."""
        self.steps += 1
        shapes = [param.shape for param in self.alone]
        grads = whole_numbers(shapes, self.steps, self.alone[0].dtype)
        for i, param in enumerate(self.alone):
            param.grad = None if i in missing else grads[i]
        for i, param in zip(self.here, self.spread, strict=True):
            param.grad = None if i in missing else placed(grads[i], self.where[i])

    def step(self, missing: Collection[int] = ()) -> None:
        self.set_gradients(missing)
        self.reference.step()
        self.optimizer.step()
        self.check()

    def check(self) -> None:
        """The norm has the bits of one process, rounded to float32, and so have the parameters.

        In float64 it may differ in the last bits, which float64 parameters show.
        """
        assert_same_norm(self.optimizer.grad_norm, self.reference.grad_norm)
        for i, param in zip(self.here, self.spread, strict=True):
            ours, theirs = whole(param), self.alone[i].detach()
            if theirs.dtype == torch.float64:
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
            else:
                assert_same_bits(ours, theirs, f"parameter {i}")


def assert_same_norm(found: Tensor | None, expected: Tensor | None) -> None:
    """All ranks find the norm that one process finds."""
    if found is None or expected is None:
        assert found is expected
        return
    assert_same_on_all_ranks(found, "norm")
    assert_same_bits(found, expected, "norm")
