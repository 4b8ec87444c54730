"""Gradients of bfloat16 parameters that are summed in float32: grad_dtype and main_grad."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

import fusedstep
from tests.support.optimizers import Kind, assert_same_run, every_class
from tests.support.tensors import assert_same_bits

# Micro-batches whose gradients, 1 and then 2^-9, are bfloat16 numbers. In bfloat16 the sum stays 1.
PARTS = [1.0] + [2.0**-9] * 40


def accumulate(net: nn.Linear, scaler: GradScaler | None = None) -> None:
    """The gradient of each weight and bias is the sum of PARTS."""
    for part in PARTS:
        loss = net(torch.ones(1, net.in_features, dtype=net.weight.dtype)).mul(part).sum()
        (loss if scaler is None else scaler.scale(loss)).backward()


def linear(grad_dtype: torch.dtype | None = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(0)
    net = nn.Linear(6, 4).bfloat16()
    for param in net.parameters():
        param.grad_dtype = grad_dtype
    return net


def into_main_grad(net: nn.Module) -> None:
    """As Megatron does: each part is added to a float32 buffer as it comes, and forgotten."""

    def add(param: Tensor) -> None:
        param.main_grad += param.grad
        param.grad = None

    for param in net.parameters():
        param.main_grad = torch.zeros(param.shape)
        param.register_post_accumulate_grad_hook(add)


def over(kind: Kind, net: nn.Module, **options: Any) -> Optimizer:
    """An optimizer of all parameters; Muon's of the matrices, and AdamW's of the rest."""
    if kind.name != "Muon":
        return kind.ours(net.parameters(), **options)
    matrices, rest = ([p for p in net.parameters() if (p.dim() == 2) == of] for of in (True, False))
    return kind.ours([{"params": matrices}, {"params": rest, "use_muon": False}], **options)


@pytest.mark.parametrize(
    "options", [{}, {"max_norm": 0.5}, {"master": "remainder", "ema_decay": 0.5}], ids=str
)
@every_class
def test_sums_over_micro_batches_are_exact(kind: Kind, options: dict[str, Any]) -> None:
    """With grad_dtype and with main_grad, against the sum in float64; bfloat16 loses its tail."""
    exact, rounded = sum(PARTS), 1.0
    with_dtype, with_buffer, plain, expected = (
        linear(torch.float32), linear(), linear(), linear(None),
    )  # fmt: skip
    into_main_grad(with_buffer)
    runs = [
        over(kind, with_dtype, **options),
        over(kind, with_buffer, grad_attribute="main_grad", **options),
    ]
    reference = over(kind, expected, **options)
    for _ in range(3):
        for net in (with_dtype, with_buffer, plain):
            accumulate(net)
        for param in with_dtype.parameters():
            assert_same_bits(
                param.grad, torch.full(param.shape, exact, dtype=torch.float64).float()
            )
        for param in plain.parameters():
            assert_same_bits(param.grad, torch.full_like(param, rounded))
        for param in expected.parameters():
            param.grad = torch.full(param.shape, exact)
        for optimizer in (*runs, reference):
            optimizer.step()
            optimizer.zero_grad()
        plain.zero_grad()
        for param in with_buffer.parameters():
            param.main_grad.zero_()
    for optimizer in runs:
        assert_same_run(optimizer, reference)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
def test_float32_gradients_of_bfloat16_parameters_are_clipped_in_float32(norm_type: float) -> None:
    net = linear(torch.float32)
    accumulate(net)
    grads = [param.grad.clone() for param in net.parameters()]
    norm = fusedstep.clip_grad_norm_(net.parameters(), 0.5, norm_type)
    assert_same_bits(norm, fusedstep.get_total_norm(grads, norm_type))
    expected = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for param, grad in zip(expected, grads, strict=True):
        param.grad = grad
    fusedstep.clip_grad_norm_(expected, 0.5, norm_type)
    for param, other in zip(net.parameters(), expected, strict=True):
        assert param.dtype == torch.bfloat16
        assert_same_bits(param.grad, other.grad)


@pytest.mark.parametrize("unscale", [False, True], ids=["step", "unscale_ then step"])
@every_class
def test_grad_scaler_scales_float32_gradients(kind: Kind, unscale: bool) -> None:
    plain, scaled = linear(torch.float32), linear(torch.float32)
    optimizers = [over(kind, net, max_norm=0.5) for net in (plain, scaled)]
    scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    for poisoned in (False, True, False):
        accumulate(scaled, scaler)
        if poisoned:
            scaled.weight.grad[0, 0] = math.inf
        else:
            accumulate(plain)
            optimizers[0].step()
        if unscale:
            scaler.unscale_(optimizers[1])
        scaler.step(optimizers[1])
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert_same_run(optimizers[1], optimizers[0])
    assert scaler.get_scale() == 512.0
