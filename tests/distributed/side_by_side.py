"""A model trained by several processes, compared with the same one trained by one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

import fusedstep
from tests.distributed.ranks import assert_same_on_all_ranks

ROWS = 12  # of a batch: the same number for each of 2, 3 or 4 ranks
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}


def make_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Sizes that neither 2 nor 3 divides, and one bias that most ranks have nothing of."""
    torch.manual_seed(0)
    layers = nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 1)
    return nn.Sequential(*layers).to(dtype)


def shard(model: nn.Sequential, *meshes: Any) -> nn.Sequential:
    """fully_shard of every layer, on the given meshes in turn, and of the whole."""
    meshes = meshes or (None,)
    layers = [layer for layer in model if list(layer.parameters())]
    for layer, mesh in zip(layers, itertools.cycle(meshes), strict=False):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=meshes[0])


def older(**options: Any) -> Callable[[nn.Module], nn.Module]:
    """FSDP1 of the whole."""
    cpu = torch.device("cpu")
    return lambda model: FullyShardedDataParallel(model, device_id=cpu, **options)


def whole(tensor: Tensor) -> Tensor:
    """All elements of a tensor of which ranks may hold parts."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.dtype == torch.int16:  # neither gloo nor NCCL sends it
        return tensor.int().full_tensor().short()
    return tensor.full_tensor()


class SideBySide:
    """Both models and their optimizers; `part` of `parts` is this rank's share of each batch."""

    def __init__(
        self,
        spread: Callable[[nn.Sequential], nn.Module],
        part: int = 0,
        parts: int = 1,
        dtype: torch.dtype = torch.float64,
        optimizer: Callable[..., torch.optim.Optimizer] = fusedstep.AdamW,
        **options: Any,
    ) -> None:
        self.dtype, self.rows = dtype, slice(part * ROWS // parts, (part + 1) * ROWS // parts)
        self.alone, self.spread = make_model(dtype), spread(make_model(dtype))
        options = {"lr": 0.01, "max_norm": 0.05} | options
        self.reference = optimizer(self.alone.parameters(), **options)
        self.optimizer = optimizer(self.spread.parameters(), **options)
        self.steps = 0

    def backward(self) -> None:
        """Gradients for the next step: of the whole batch alone, of a share of it together."""
        generator = torch.Generator().manual_seed(self.steps)
        x = torch.randn(ROWS, 5, generator=generator, dtype=self.dtype)
        y = torch.randn(ROWS, 1, generator=generator, dtype=self.dtype)
        for model, rows in ((self.alone, slice(None)), (self.spread, self.rows)):
            (model(x[rows]) - y[rows]).square().mean().backward()

    def step(self) -> None:
        """One step of both, then the comparison."""
        self.backward()
        self.update()
        self.check()

    def update(self) -> None:
        for optimizer in (self.reference, self.optimizer):
            optimizer.step()
        self.discard()

    def step_alone(self) -> None:
        """One step of the single process, while the others wait for a checkpoint."""
        self.backward()
        self.reference.step()
        self.discard()

    def discard(self) -> None:
        """Forgets the gradients, and goes on to the next batch."""
        self.reference.zero_grad()
        self.optimizer.zero_grad()
        self.steps += 1

    def check(self) -> None:
        """The norm has the same bits on all ranks; all is close to what one process finds."""
        expected, norm = self.reference.grad_norm, self.optimizer.grad_norm
        assert (norm is None) == (expected is None)
        if norm is not None:
            assert type(norm) is Tensor
            assert_same_on_all_ranks(norm, "grad_norm")
            torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
        tolerance = TOLERANCES[self.dtype]
        named = dict(self.spread.named_parameters())
        for (name, param), one in zip(named.items(), self.alone.parameters(), strict=True):
            close = {
                "rtol": tolerance,
                "atol": tolerance,
                "msg": lambda m, name=name: f"{name}: {m}",
            }
            assert_same_on_all_ranks(whole(param), name)
            torch.testing.assert_close(whole(param), one.detach(), **close)
            states = self.optimizer.state[param], self.reference.state[one]
            assert states[0].keys() == states[1].keys()
            for key, state in states[0].items():
                torch.testing.assert_close(whole(state), states[1][key], **close)
