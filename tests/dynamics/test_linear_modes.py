"""The modes of deep linear networks against networks that are trained."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fusedstep
from fusedstep.dynamics import deep_linear_modes
from tests.support.refusals import refuses

F64 = torch.float64


def rotation(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=generator)).Q


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_trained_network(depth: int) -> None:
    """Aligned and balanced layers, then torch's gradients and fusedstep.SGD."""
    s, u0 = torch.tensor([3.0, 1.5, 0.5], dtype=F64), torch.tensor([0.02, 0.01, 0.2], dtype=F64)
    turns = [rotation(3, seed) for seed in range(depth + 1)]
    target = turns[-1] * s @ turns[0].T
    layers = [nn.Parameter(turns[i + 1] * u0 ** (1 / depth) @ turns[i].T) for i in range(depth)]
    steps, lr = 300, 0.02
    predicted = deep_linear_modes(s, u0, lr, steps, depth)
    assert predicted.shape == (steps + 1, 3)
    opt = fusedstep.SGD(layers, lr=lr)
    for step in range(steps + 1):
        product = layers[0]
        for layer in layers[1:]:
            product = layer @ product
        modes = turns[-1].T @ product.detach() @ turns[0]
        torch.testing.assert_close(modes, torch.diag(predicted[step]), rtol=1e-10, atol=1e-11)
        opt.zero_grad()
        (((product - target) ** 2).sum() / 2).backward()
        opt.step()


def test_two_layers_follow_the_logistic_curve_of_the_flow() -> None:
    """Saxe et al., equation 7, in the limit of small steps."""
    s, u0, lr, steps = 2.0, 0.01, 1e-4, 40_000
    time = lr * torch.arange(steps + 1, dtype=F64)
    growth = torch.exp(2 * s * time)
    flow = s * growth / (growth - 1 + s / u0)
    modes = deep_linear_modes([s], u0, lr, steps)[:, 0]
    assert (modes - flow).abs().max() < 1e-3 * s


def test_larger_modes_are_learned_first() -> None:
    s = torch.tensor([4.0, 2.0, 1.0])
    halves = (deep_linear_modes(s, 1e-4, 0.01, 2000) > s / 2).int().argmax(0)
    assert halves[0] < halves[1] < halves[2]
    for half, value in zip(halves.tolist(), s.tolist(), strict=True):
        assert half == pytest.approx(math.log(value / 1e-4) / (2 * value * 0.01), rel=0.05)


def test_zero_stays_zero_and_a_solution_stays() -> None:
    modes = deep_linear_modes([1.0, 2.0], [0.0, 2.0], 0.1, 50)
    assert modes[:, 0].tolist() == [0.0] * 51
    assert modes[:, 1].tolist() == pytest.approx([2.0] * 51, rel=1e-15)


def test_the_documented_limit_of_the_rate() -> None:
    s, depth = 3.0, 3
    limit = 2 / (depth * s ** (2 - 2 / depth))
    below, above = (
        deep_linear_modes([s], s * 1.0001, rate * limit, 2000, depth)[-1].item()
        for rate in (0.99, 1.01)
    )
    assert below == pytest.approx(s, rel=1e-9)
    assert abs(above - s) > 0.01


REFUSED = [
    ({"singular_values": []}, "singular_values", "have an entry", "none", ValueError),
    ({"singular_values": [-1.0]}, "singular_values", "be 0 or more", "-1.0", ValueError),
    ({"singular_values": [math.inf]}, "singular_values", "be finite", "inf", ValueError),
    ({"singular_values": "a"}, "singular_values", "be numbers", "'a'", TypeError),
    (
        {"singular_values": [[1.0]]},
        "singular_values",
        "have at most one dimension",
        ".*",
        ValueError,
    ),
    ({"initial": math.nan}, "initial", "be 0 or more", "nan", ValueError),
    ({"initial": [1.0] * 3}, "initial", "be one number or 2 of them", "3", ValueError),
    ({"lr": 0.0}, "lr", "be above 0", "0.0", ValueError),
    ({"lr": 100.0}, "lr", "be small enough that no mode diverges", "100.0", ValueError),
    ({"steps": -1}, "steps", "be at least 0", "-1", ValueError),
    ({"depth": 0}, "depth", "be at least 1", "0", ValueError),
]


@pytest.mark.parametrize(("changes", "argument", "must", "got", "kind"), REFUSED)
def test_refusals(changes, argument, must, got, kind):
    arguments = {"singular_values": [2.0, 1.0], "initial": 0.1, "lr": 0.1, "steps": 50}
    with refuses("deep_linear_modes", argument, must, got, kind):
        deep_linear_modes(**(arguments | changes))
