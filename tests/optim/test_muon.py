"""Muon: the bits of its reference around the products, and torch's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from fusedstep.optim.newton_schulz import orthogonalize_
from tests.reference.clip import decide
from tests.reference.muon import MuonGroup, muon_descent, muon_direction
from tests.reference.norm import total_norm
from tests.reference.storage import round_to
from tests.support.newton_schulz import exact
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    assert_same_bits,
    copies,
    from_memory_order,
    in_memory_order,
    laid_out,
    make_params,
    name_of,
    set_grads,
)

# Several of one shape, tall, wide, square, odd, vectors and a single number; not in order.
SHAPES = [(8, 16), (64, 64), (16, 8), (8, 16), (33, 17), (1, 5), (5, 1), (64, 64), (1, 1), (150, 3)]
RATIOS = {
    None: lambda m, n: max(1, m / n) ** 0.5,
    "original": lambda m, n: max(1, m / n) ** 0.5,
    "match_rms_adamw": lambda m, n: 0.2 * max(m, n) ** 0.5,
    "spectral_unclamped": lambda m, n: (m / n) ** 0.5,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "decay": {"lr": 0.05, "weight_decay": 0.5},
    "no momentum": {"momentum": 0.0, "lr": 0.02},
    "little momentum": {"momentum": 0.3, "lr": 0.02},
    "no nesterov": {"nesterov": False, "lr": 0.02},
    "match_rms_adamw": {"adjust_lr_fn": "match_rms_adamw", "lr": 0.02},
    "spectral_unclamped": {"adjust_lr_fn": "spectral_unclamped", "lr": 0.02},
    "original": {"adjust_lr_fn": "original", "lr": 0.02},
    "iteration": {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 3, "lr": 0.02},
    "no iteration": {"ns_steps": 0, "lr": 0.02},
    "tensor lr": {"lr": torch.tensor(0.02, dtype=torch.float64)},
}
CLIPS: dict[str, dict[str, Any]] = {
    "clip": {"max_norm": 1.0, "lr": 0.02},
    "clip, 1-norm": {"max_norm": 3.0, "norm_type": 1.0, "lr": 0.02},
}
OURS = OPTIONS | CLIPS | {"maximize": {"maximize": True, "lr": 0.02}}


def shadow_step(optimizer: fusedstep.Muon, states: dict[Tensor, Tensor]) -> None:
    """One step of the optimizer and of the reference, in which only the products are ours."""
    (options,) = optimizer.param_groups
    group = MuonGroup(**{f.name: float(options[f.name]) for f in fields(MuonGroup)})
    params = [param for param in options["params"] if param.grad is not None]
    grads = [in_memory_order(param.grad, param) for param in params]
    norm = total_norm(grads, optimizer.norm_type, 1.0) if optimizer.max_norm is not None else None
    multiplier = decide(norm, optimizer.max_norm, None, None, False).multiplier
    directions, buffers, values = [], [], []
    for param, grad in zip(params, grads, strict=True):
        value = in_memory_order(param)
        buffer = in_memory_order(states[param], param) if param in states else 0 * value
        grad = grad.astype(value.dtype)
        direction, buffer = muon_direction(grad, buffer, group, multiplier)
        stored = torch.float64 if param.dtype == torch.float64 else torch.bfloat16
        direction = from_memory_order(round_to(direction, name_of(stored)), param)
        directions.append(direction.to(param.device, stored))
        buffers.append(buffer)
        values.append(value)
    iteration = (options[key] for key in ("ns_coefficients", "ns_steps", "eps"))
    orthogonalize_(directions, *iteration)
    optimizer.step()
    for i, param in enumerate(params):
        ratio = RATIOS[options["adjust_lr_fn"]](*param.shape)
        value = muon_descent(values[i], in_memory_order(directions[i], param), ratio, group)
        expected = from_memory_order(round_to(value, name_of(param.dtype)), param)
        assert_same_bits(param.detach().cpu().to(expected.dtype), expected, f"params[{i}]")
        assert optimizer.state[param].keys() == {"momentum_buffer"}
        states[param] = optimizer.state[param]["momentum_buffer"].clone()
        assert_same_bits(states[param].cpu(), from_memory_order(buffers[i], param), f"buffer {i}")
    if norm is not None:
        assert float(optimizer.grad_norm) == float(torch.tensor(norm, dtype=torch.float32))


@pytest.mark.parametrize("options", OURS.values(), ids=OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_equals_the_reference_bit_for_bit(
    dtype: torch.dtype, options: dict[str, Any], device: torch.device
) -> None:
    params = make_params(*SHAPES, dtype=dtype, device=device)
    optimizer, states = fusedstep.Muon(params, **options), {}
    for step in range(3):
        set_grads(params, seed=step)
        shadow_step(optimizer, states)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gradients_of_any_dtype_and_state_in_float32(dtype: torch.dtype) -> None:
    params = make_params(*SHAPES, dtype=dtype)
    optimizer, states = fusedstep.Muon(params, lr=0.05, max_norm=1.0), {}
    for step in range(4):
        for i, param in enumerate(params):
            set_grads([param], seed=10 * step + i, dtype=DTYPES[(i + step) % 4])
        shadow_step(optimizer, states)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert {state["momentum_buffer"].dtype for state in optimizer.state.values()} == {kept}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layouts(layout: str) -> None:
    params = [laid_out(p.detach(), layout).requires_grad_() for p in make_params(*SHAPES)]
    optimizer, states = fusedstep.Muon(params, lr=0.05), {}
    for step in range(4):
        set_grads(params, seed=step)
        for i, param in enumerate(params):
            param.grad = laid_out(param.grad, LAYOUTS[(i + step) % 4])
        shadow_step(optimizer, states)


def follow(
    ours: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    theirs: Sequence[Tensor],
    reference: torch.optim.Optimizer,
    steps: range = range(5),
    clip: dict[str, float] | None = None,
) -> None:
    """The same gradients for both; at step 2 the first parameter has none."""
    for step in steps:
        set_grads(ours, seed=step)
        set_grads(theirs, seed=step)
        if step == 2:
            ours[0].grad = theirs[0].grad = None
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs, **clip)
        optimizer.step()
        reference.step()


def torchs(params: Sequence[Tensor], **options: Any) -> torch.optim.Optimizer:
    """torch.optim.Muon, where this torch has what the options ask for."""
    try:
        return torch.optim.Muon(params, **options)
    except ValueError as error:
        pytest.skip(f"torch {torch.__version__}: {error}")


@pytest.mark.parametrize("name", OPTIONS)
def test_is_torch_in_float64_with_exact_products(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", exact)
    ours = make_params(*SHAPES, dtype=torch.float64)
    theirs, before = copies(ours), copies(ours)
    options = OPTIONS[name]
    optimizer, reference = fusedstep.Muon(ours, **options), torchs(theirs, **options)
    follow(ours, optimizer, theirs, reference)
    for p, q, start in zip(ours, theirs, before, strict=True):
        assert (p - q).norm() <= 1e-4 * (q - start).norm()  # small matrices: products in float32
        buffer, expected = (
            one["momentum_buffer"] for one in (optimizer.state[p], reference.state[q])
        )
        torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OPTIONS | CLIPS)
def test_is_close_to_torch_in_float32(name: str) -> None:
    """The difference is the error of torch's products, which are in bfloat16."""
    options = (OPTIONS | CLIPS)[name]
    clip = {key: value for key, value in options.items() if "norm" in key}
    ours = make_params(*SHAPES)
    theirs, before = copies(ours), copies(ours)
    optimizer = fusedstep.Muon(ours, **options)
    reference = torchs(theirs, **{k: v for k, v in options.items() if k not in clip})
    follow(ours, optimizer, theirs, reference, clip=clip)
    apart, moved = (
        torch.cat([(a - b).flatten() for a, b in zip(theirs, others, strict=True)]).norm()
        for others in (ours, before)
    )
    assert apart <= 0.03 * moved
    for p, q in zip(ours, theirs, strict=True):
        buffer, expected = (
            one["momentum_buffer"] for one in (optimizer.state[p], reference.state[q])
        )
        torch.testing.assert_close(buffer, expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_orthogonalizing_leaves_the_momentum(
    nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.optim.Muon up to 2.14 divides its own by the norm: if bfloat16, without Nesterov."""
    half = torch.bfloat16
    ours = make_params((8, 16), (16, 8), (8, 16), dtype=half)
    theirs = copies(ours)
    options = {"lr": 0.02, "nesterov": nesterov, "momentum": 0.5}
    optimizer, reference = fusedstep.Muon(ours, **options), torch.optim.Muon(theirs, **options)
    divide = torch.optim._muon._zeropower_via_newtonschulz
    monkeypatch.setattr(
        torch.optim._muon, "_zeropower_via_newtonschulz",
        lambda update, *iteration: divide(update.clone(), *iteration),
    )  # fmt: skip
    states: dict[Tensor, Tensor] = {}
    for step in range(4):
        set_grads(ours, seed=step)
        set_grads(theirs, seed=step)
        shadow_step(optimizer, states)  # the bits of the buffers, among others
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        buffer, expected = optimizer.state[p]["momentum_buffer"], reference.state[q]
        torch.testing.assert_close(
            buffer, expected["momentum_buffer"].float(), rtol=0.02, atol=0.01
        )  # theirs is in bfloat16
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.02)


def test_maximize_goes_where_the_opposite_gradient_does() -> None:
    up = make_params(*SHAPES)
    down = copies(up)
    optimizers = fusedstep.Muon(up, maximize=True), fusedstep.Muon(down)
    for step in range(3):
        set_grads(up, seed=step)
        set_grads(down, seed=step, scale=-1.0)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(up, down, strict=True):
        assert_same_bits(p, q)


def test_gradients_are_left_as_they_were() -> None:
    params = make_params(*SHAPES)
    set_grads(params)
    before = [param.grad.clone() for param in params]
    fusedstep.Muon(params, max_norm=0.1).step()
    for param, grad in zip(params, before, strict=True):
        assert_same_bits(param.grad, grad)
