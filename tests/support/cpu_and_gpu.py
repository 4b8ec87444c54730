"""One optimizer on the CPU and on the GPU: after each step they agree in every bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

import fusedstep
from tests.support.tensors import assert_same_bits, make_params, set_grads


class CpuAndGpu:
    """The same optimizer over the same parameters on the CPU and on the GPU."""

    def __init__(
        self,
        *shapes: tuple[int, ...],
        optimizer: Callable[..., Optimizer] = fusedstep.AdamW,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        self.cpu, self.cuda = (
            make_params(*shapes, dtype=dtype, device=device) for device in ("cpu", "cuda")
        )
        self.optimizers = [optimizer(p, **options) for p in (self.cpu, self.cuda)]

    def set_grads(self, seed: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> None:
        set_grads(self.cpu, seed, dtype, scale)
        set_grads(self.cuda, seed, dtype, scale)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def check(self, norm: bool = True) -> None:
        """Parameters, state and, with `norm`, the published norm are the same on both."""
        on_cpu, on_cuda = self.optimizers
        for i, (p, q) in enumerate(zip(self.cpu, self.cuda, strict=True)):
            assert_same_bits(q, p, f"params[{i}]")
            assert on_cuda.state[q].keys() == on_cpu.state[p].keys()
            for name, value in on_cpu.state[p].items():
                assert_same_bits(on_cuda.state[q][name], value, f"{name} of params[{i}]")
        if norm and on_cpu.grad_norm is not None:
            assert_same_bits(on_cuda.grad_norm, on_cpu.grad_norm, "grad_norm")
