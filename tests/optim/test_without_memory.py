"""Tensors without memory: FakeTensorMode, the meta device, and meta as the default device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fusedstep
from tests.support.optimizers import Kind, every_class
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import assert_same_bits, make_params, set_grads

# Options, and the dtype of the parameters.
MODES: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "plain": ({}, torch.float32),
    "clip": ({"max_norm": 1.0}, torch.float32),
    "skip": ({"nonfinite": "skip"}, torch.float32),
    "average": ({"ema_decay": 0.9}, torch.float32),
    "bfloat16 state": ({"state_dtype": torch.bfloat16}, torch.float32),
    "8-bit state": ({"state_dtype": "int8"}, torch.float32),
    "master": ({"master": "float32"}, torch.bfloat16),
    "remainder": ({"master": "remainder"}, torch.bfloat16),
    "correction": ({"master": "correction"}, torch.bfloat16),
}
every_mode = pytest.mark.parametrize("mode", MODES)


def train(kind: Kind, mode: str, integer_step: bool = False) -> torch.optim.Optimizer:
    """Two steps with everything in between that reads or writes the state."""
    options, dtype = MODES[mode]
    params = [
        nn.Parameter(torch.linspace(-1, 1, 12, device="cpu", dtype=dtype).reshape(shape))
        for shape in ((3, 4), (6, 2))
    ]
    optimizer = kind.ours(params, **options)
    for _ in range(2):
        for param in params:
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        checkpoint = optimizer.state_dict()
        for entries in checkpoint["state"].values():
            if integer_step and "step" in entries:
                entries["step"] = int(entries["step"])
        optimizer.load_state_dict(checkpoint)
    if "ema_decay" in options:
        with optimizer.swap_ema():
            pass
    optimizer.to_torch_state_dict()
    return optimizer


def signature(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    """Shapes, dtypes and strides of all state."""
    return {
        (key, name): (value.shape, value.dtype, value.stride(), value.device)
        for key, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


@every_mode
@every_class
def test_steps_under_fake_tensor_mode(kind: Kind, mode: str) -> None:
    with FakeTensorMode():
        fake = train(kind, mode)
        found = signature(fake)
    assert found == signature(train(kind, mode))
    tensors = [value for entries in fake.state.values() for value in entries.values()]
    assert all(isinstance(tensor, FakeTensor) for tensor in tensors)


def fake_gradients() -> list[Tensor]:
    params = make_params((4, 3), (4, 3), (5,))
    params[0].grad, params[1].grad = torch.ones(4, 6).chunk(2, dim=-1)
    params[2].grad = torch.ones(5)
    return params


@pytest.mark.parametrize("norm_type", [2.0, 3.0])
def test_norm_and_clip_under_fake_tensor_mode(norm_type: float) -> None:
    with FakeTensorMode():
        params = fake_gradients()
        norms = [
            fusedstep.clip_grad_norm_(params, 1.0, norm_type),
            fusedstep.get_total_norm([param.grad for param in params], norm_type),
        ]
        for norm in norms:
            assert isinstance(norm, FakeTensor)
            assert (norm.shape, norm.dtype, norm.device.type) == ((), torch.float32, "cpu")


def test_values_that_fake_tensors_lack_are_not_read() -> None:
    without = "for tensors without values"
    with FakeTensorMode():
        params = fake_gradients()
        must = f"be False {without}"
        with refuses("clip_grad_norm_", "error_if_nonfinite", must, "True", ValueError):
            fusedstep.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
        optimizer = fusedstep.AdamW(params, nonfinite="error")
        must = f"be 'propagate' or 'skip' {without}"
        with refuses("AdamW", "nonfinite", must, "'error'", ValueError):
            optimizer.step()
        hidden, tokens = torch.ones(6, 3), torch.zeros(6, dtype=torch.int64)
        for solve in (fusedstep.lm_head.newton_full, fusedstep.lm_head.fit_temperature):
            arguments = (hidden, tokens, torch.ones(5, 3))
            if solve is fusedstep.lm_head.newton_full:
                arguments = (torch.ones(5, 3), hidden, tokens)
            with refuses(
                solve.__name__, "tokens", "have values", "a FakeTensor on cpu", ValueError
            ):
                solve(*arguments)


@every_class
def test_parameters_that_get_their_memory_after_construction(kind: Kind) -> None:
    layer = nn.Linear(3, 4, bias=False, device="meta")
    optimizer = kind.ours(layer.parameters(), max_norm=1.0)
    layer.weight.grad = torch.ones(4, 3, device="meta")
    must = "be on a CPU or a CUDA device"
    with refuses(kind.name, "params[0]", must, "meta", ValueError):
        optimizer.step()
    assert not optimizer.state
    optimizer.zero_grad()

    plain = nn.Linear(3, 4, bias=False)
    torch.utils.swap_tensors(layer.weight, nn.Parameter(plain.weight.detach().clone()))
    expected = kind.ours(plain.parameters(), max_norm=1.0)
    for module, step in ((layer, optimizer.step), (plain, expected.step)):
        module.weight.grad = torch.full((4, 3), 2.0)
        step()
    assert_same_bits(layer.weight, plain.weight, "weight")


def test_state_without_memory_is_refused() -> None:
    params = make_params((4, 3))
    optimizer = fusedstep.AdamW(params)
    set_grads(params)
    optimizer.step()
    optimizer.state[params[0]]["exp_avg"] = torch.zeros(4, 3, device="meta")
    snapshot = Snapshot(params)
    where = "state of params[0]['exp_avg']"
    with refuses("AdamW", where, "have values", "a tensor on meta", ValueError):
        optimizer.step()
    snapshot.check()


@every_mode
@every_class
def test_default_device_does_not_matter(kind: Kind, mode: str) -> None:
    expected = train(kind, mode, integer_step=True)
    with torch.device("meta"):
        optimizer = train(kind, mode, integer_step=True)
    for ours, theirs in zip(
        (param for group in optimizer.param_groups for param in group["params"]),
        (param for group in expected.param_groups for param in group["params"]),
        strict=True,
    ):
        assert_same_bits(ours, theirs, "parameter")
        assert optimizer.state[ours].keys() == expected.state[theirs].keys()
        for name, value in expected.state[theirs].items():
            assert_same_bits(optimizer.state[ours][name], value, name)


def test_default_device_of_norm_and_clip_does_not_matter() -> None:
    params = fake_gradients()
    with torch.device("meta"):
        assert float(fusedstep.get_total_norm([])) == 0
        assert float(fusedstep.clip_grad_norm_([], 1.0)) == 0
        for norm_type, expected in ((2.0, 29**0.5), (3.0, 29 ** (1 / 3))):
            norm = fusedstep.get_total_norm([param.grad for param in params], norm_type)
            assert float(norm) == pytest.approx(expected, rel=1e-6)
        fusedstep.clip_grad_norm_(params, 1.0)
    assert float(fusedstep.get_total_norm([p.grad for p in params])) == pytest.approx(1, rel=1e-5)
