"""Losses whose Hessians are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Loss = Callable[[], Tensor]


def quadratic(spectrum: Tensor, mixed: bool = True) -> tuple[Loss, list[Tensor], Tensor]:
    """1/2 w' H w of two parameters, with eigenvalues `spectrum` along random axes if `mixed`."""
    size = len(spectrum)
    generator = torch.Generator().manual_seed(size)
    axes = torch.eye(size, dtype=torch.float64)
    if mixed:
        axes = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
    matrix = axes * spectrum @ axes.T
    matrix = (matrix + matrix.T) / 2
    cut = size // 2
    whole = torch.randn(size, dtype=torch.float64, generator=generator)
    params = [whole[:cut].clone().requires_grad_(), whole[None, cut:].clone().requires_grad_()]

    def loss_fn() -> Tensor:
        w = torch.cat([p.reshape(-1) for p in params])
        return w @ matrix @ w / 2

    return loss_fn, params, matrix


def network(dtype: torch.dtype) -> tuple[nn.Module, Loss]:
    """A small network with random weights and its mean squared error on random data."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2)).to(torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5)
    model = model.to(dtype)
    x, y = data(dtype)
    return model, lambda: ((model(x) - y) ** 2).mean()


def data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The network's inputs [16, 4] and targets [16, 2]."""
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(16, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    return x.to(dtype), y.to(dtype)


def dense_hessian(loss_fn: Loss, params: Sequence[Tensor]) -> Tensor:
    """The whole Hessian, row after row."""
    grads = torch.autograd.grad(loss_fn(), params, create_graph=True)
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    rows = []
    for entry in flat:
        row = torch.autograd.grad(
            entry, params, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([part.reshape(-1) for part in row]))
    return torch.stack(rows)
