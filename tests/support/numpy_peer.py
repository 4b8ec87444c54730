"""A peer in plain NumPy, as bench.peers.child serves one: SGD without momentum, clipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch

from bench.case import MAX_NORM, Side, Work, side_of


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Of "sgd"; "lion" fails at its first call, "muon" ends the process."""
    if work.rule in ("sgd", "lion", "muon"):
        print("what a library prints while it starts")
        yield side(work, device)


def side(work: Work, device: torch.device) -> Side:
    tensors = work.params(device)
    params = [tensor.detach().numpy() for tensor in tensors]
    grads = [tensor.grad.numpy() for tensor in tensors]

    def call() -> None:
        if work.rule == "lion":
            raise ValueError("no loop for lion")
        if work.rule == "muon":
            os._exit(3)
        norm = np.sqrt(sum(np.vdot(grad, grad) for grad in grads))
        scale = min(1, MAX_NORM / (norm + 1e-6)) if work.clip else 1
        for param, grad in zip(params, grads, strict=True):
            param -= np.float32(work.arguments["lr"] * scale) * grad

    return side_of("numpy", call, device, lambda: tensors, lambda: 7)
