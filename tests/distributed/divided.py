"""Parameters divided between ranks in the usual ways, and what of the whole each rank has.

Which elements a shard holds is not computed but read: a model whose values are their own positions
is divided first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim import Optimizer

from fusedstep import _C
from fusedstep.optim.distributed import local, placed_like
from tests.distributed.ranks import of_all_ranks
from tests.support.tensors import assert_same_bits


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Rows of whole blocks, a number of them that 2, 3 and 4 do not divide; odd rows; biases."""
    layers = nn.Linear(128, 9), nn.Linear(256, 6), nn.Linear(5, 3)
    return nn.Sequential(*layers).to(dtype)


Wrap = Callable[[nn.Module], nn.Module]


def sharded(model: nn.Module) -> nn.Module:
    return fully_shard(model)


def sharded_and_replicated(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("r", "s")))


def split(model: nn.Module, mesh: Any = None) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),)) if mesh is None else mesh
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel(), "2": ColwiseParallel()}
    return parallelize_module(model, mesh, plan)


def sharded_and_split(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("s", "t"))
    return fully_shard(split(model, mesh["t"]), mesh=mesh["s"])


def alone(model: nn.Module) -> nn.Module:
    """All of it in each process."""
    return model


class Divided:
    """A divided model and its optimizer, stepped with gradients that depend on the step alone."""

    def __init__(
        self, wrap: Wrap, kind: Any, dtype: torch.dtype = torch.float32, **options: Any
    ) -> None:
        model = make_model(dtype=torch.float32)
        for param in model.parameters():
            param.data = torch.arange(param.numel(), dtype=torch.float32).view(param.shape)
        self.wrap, self.model = wrap, wrap(model)
        self.params = list(self.model.parameters())
        self.which = [local(param).detach().flatten().long() for param in self.params]
        self.model.to(dtype)
        generator = torch.Generator().manual_seed(0)
        for i, param in enumerate(self.params):
            local(param).detach().copy_(self.part(i, torch.randn(param.shape, generator=generator)))
        self.optimizer: Optimizer = kind(self.model.parameters(), **options)

    def part(self, i: int, whole: Tensor) -> Tensor:
        """The elements of `whole`, of the shape of the i-th parameter, that this rank has."""
        return whole.flatten()[self.which[i]].view_as(local(self.params[i]))

    def in_order(self, i: int) -> bool:
        """Whether each rank's elements of the i-th parameter are consecutive in the whole."""
        return all(bool((which.diff() == 1).all()) for which in of_all_ranks(self.which[i]))

    def set_gradients(self, step: int, missing: Callable[[int], bool] = lambda i: False) -> None:
        generator = torch.Generator().manual_seed(100 + step)
        for i, param in enumerate(self.params):
            grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            part = placed_like(param, self.part(i, grad))
            param.grad = None if missing(i) else part

    def run(self, *steps: int, missing: Callable[[int, int], bool] = lambda step, i: False) -> None:
        for step in steps:
            self.set_gradients(step, lambda i, step=step: missing(step, i))
            self.optimizer.step()
        self.optimizer.zero_grad()

    def entries(self) -> list[dict[str, Tensor]]:
        """The local part of each parameter and of its state."""
        return [
            {"param": local(param), **{n: local(v) for n, v in self.optimizer.state[param].items()}}
            if param in self.optimizer.state
            else {"param": local(param)}
            for param in self.params
        ]

    def wholes(self, of: Sequence[int] | None = None) -> list[dict[str, Tensor]]:
        """Each parameter and its state, put together from all ranks; `of`: the numbers of some."""
        return self.together(self.entries(), of)

    def together(
        self, parts: list[dict[str, Tensor]], of: Sequence[int] | None = None
    ) -> list[dict[str, Tensor]]:
        """The wholes of what belongs to the parameters, of which each rank has `parts`."""
        everywhere: list[Any] = of_all_ranks((self.which, parts))
        return [
            {
                name: _together(name, value, i, everywhere, self.params[i])
                for name, value in parts[i].items()
            }
            for i in (range(len(parts)) if of is None else of)
        ]

    def put(self, wholes: list[dict[str, Tensor]]) -> None:
        """Writes this rank's parts of what `wholes` returned into existing parameters and state."""
        for i, entries in enumerate(self.entries()):
            assert entries.keys() == wholes[i].keys()
            for name, value in entries.items():
                places = _places(name, value, self.which[i])
                value.detach().copy_(wholes[i][name].flatten()[places].view_as(value))


def _places(name: str, value: Tensor, which: Tensor) -> Tensor:
    """Where the elements of an entry are in the whole, from where those of its parameter are."""
    if name == "step":
        return torch.zeros(1, dtype=torch.long)
    if name.endswith("_scale"):  # of each block, which is whole
        assert value.numel() * _C.BLOCK == which.numel()
        return which[:: _C.BLOCK] // _C.BLOCK
    return which


def _together(name: str, value: Tensor, i: int, everywhere: list[Any], param: Tensor) -> Tensor:
    if name == "step":
        return value.clone()
    size = param.numel() // (_C.BLOCK if name.endswith("_scale") else 1)
    whole = torch.zeros(size, dtype=value.dtype)
    for which, entries in everywhere:
        whole[_places(name, entries[i][name], which[i])] = entries[i][name].flatten()
    return whole


def assert_same_parts(actual: Divided, expected: Divided) -> None:
    """Parameters and all state that this rank has, bit for bit."""
    pairs = zip(actual.entries(), expected.entries(), strict=True)
    for i, (ours, theirs) in enumerate(pairs):
        assert ours.keys() == theirs.keys(), f"parameter {i}"
        for name, value in ours.items():
            assert_same_bits(value, theirs[name], f"{name} of parameter {i}")


def assert_same_wholes(actual: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for i, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.keys() == theirs.keys(), f"parameter {i}"
        for name, value in ours.items():
            assert_same_bits(value, theirs[name], f"{name} of parameter {i}")
