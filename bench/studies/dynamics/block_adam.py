"""The optimizers that are compared: Adam, Adam with one rate a block, SGD with momentum."""

from __future__ import annotations

import torch
from torch import nn

import fusedstep
from bench.studies.dynamics.language import Transformer

BETA1, BETA2, EPS = 0.9, 0.99, 1e-8


class Adam:
    """fusedstep.Adam at a rate times a factor that is set for each step."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.lr = lr
        self.optimizer = self.make(list(model.parameters()))

    def make(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer that takes the steps."""
        return fusedstep.Adam(params, betas=(BETA1, BETA2), eps=EPS)

    def step(self, factor: float) -> None:
        """Takes a step and forgets the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.step()
        self.optimizer.zero_grad()


class Momentum(Adam):
    """fusedstep.SGD with an average of the gradients, as Adam's."""

    def make(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return fusedstep.SGD(params, momentum=BETA1, dampening=1 - BETA1)


class BlockAdam(Momentum):
    """Adam with one second moment a block (Adam-mini, Zhang et al. 2024, arXiv 2406.16793).

    SGD with an averaged gradient, whose gradients are divided, block by block, by the root of the
    average of their mean squares: within a block all elements have one rate.
    """

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(model, lr)
        self.blocks = blocks(model)
        self.squares = [torch.zeros(count) for _, count in self.blocks]
        self.steps = 0

    def step(self, factor: float) -> None:
        self.steps += 1
        correction = 1 - BETA2**self.steps
        for (param, count), squares in zip(self.blocks, self.squares, strict=True):
            assert param.grad is not None
            gradient = param.grad.view(count, -1)
            squares.lerp_(gradient.square().mean(1), 1 - BETA2)
            gradient.div_((squares / correction).sqrt()[:, None] + EPS)
        super().step(factor)


def blocks(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Each parameter and the number of its blocks, as in Adam-mini: a block for each head of the
    queries and keys, each row of the other matrices (a neuron or a token), each vector.
    """
    parts = []
    for name, param in model.named_parameters():
        rows = Transformer.HEADS if name.endswith(("query.weight", "key.weight")) else len(param)
        parts.append((param, rows if param.dim() == 2 else 1))
    return parts
