"""The neural tangent kernel against whole Jacobians; its prediction against training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fusedstep
from fusedstep.dynamics import kernel_prediction, ntk
from tests.support.refusals import refuses

F64 = torch.float64


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """[examples, outputs, elements of all parameters], one backward pass each."""
    rows = []
    params = [p for p in model.parameters() if p.requires_grad]
    for example in x:
        out = model(example[None]).reshape(-1)
        grads = [
            torch.autograd.grad(
                o, params, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            for o in out
        ]
        rows.append(torch.stack([torch.cat([part.reshape(-1) for part in g]) for g in grads]))
    return torch.stack(rows)


def make_model(outputs: int) -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, outputs))
    return model.double().eval()


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
def test_explicit_jacobians(outputs: int, chunk_size: int | None) -> None:
    model = make_model(outputs)
    x1, x2 = torch.randn(7, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    j1, j2 = jacobian(model, x1), jacobian(model, x2)
    for columns, j in ((None, j1), (x2, j2)):
        kernel = ntk(model, x1, columns, chunk_size=chunk_size)
        expected = torch.einsum("iop,jop->ij", j1, j)
        torch.testing.assert_close(kernel, expected, rtol=1e-12, atol=1e-12)


def test_one_half_is_computed_once() -> None:
    model, x = make_model(1), torch.randn(6, 3, dtype=F64)
    kernel = ntk(model, x, chunk_size=2)
    assert torch.equal(kernel, kernel.T)
    torch.testing.assert_close(kernel, ntk(model, x, x), rtol=1e-13, atol=1e-13)


def test_frozen_parameters_and_shared_ones() -> None:
    model = make_model(2)
    model[0].requires_grad_(False)
    x = torch.randn(4, 3, dtype=F64)
    j = jacobian(model, x)
    expected = torch.einsum("iop,jop->ij", j, j)
    torch.testing.assert_close(ntk(model, x), expected, rtol=1e-12, atol=1e-12)

    shared = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    shared[2].weight = shared[0].weight
    j = jacobian(shared, x)
    expected = torch.einsum("iop,jop->ij", j, j)
    torch.testing.assert_close(ntk(shared, x), expected, rtol=1e-12, atol=1e-12)


def test_leaves_the_model_as_it_was() -> None:
    model = make_model(1)
    x = torch.randn(4, 3, dtype=F64)
    model(x).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kernel = ntk(model, x)
    assert not kernel.requires_grad
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_linear_model_is_predicted_exactly(outputs: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 5, dtype=F64), torch.randn(8, outputs, dtype=F64)
    model = nn.Linear(5, outputs).double()
    kernel = ntk(nn.Linear(5, 1).double(), x)  # of one output, whatever the weights
    counts, lr = [0, 1, 17, 400], 0.2
    predicted = kernel_prediction(kernel, (model(x) - y).detach(), lr, counts)
    opt = fusedstep.SGD(model.parameters(), lr=lr)
    for step in range(401):
        if step in counts:
            torch.testing.assert_close(
                (model(x) - y).detach(), predicted[counts.index(step)], rtol=1e-11, atol=1e-12
            )
        opt.zero_grad()
        (((model(x) - y) ** 2).sum(1).mean() / 2).backward()
        opt.step()


def test_a_wide_network_follows_and_a_narrow_one_leaves() -> None:
    def departure(width: int) -> float:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()
        with torch.no_grad():  # the NTK parametrization in the weights' variance
            model[0].weight.normal_()
            model[2].weight.normal_(std=width**-0.5)
        x = torch.randn(6, 2, dtype=F64)
        y = torch.sign(x[:, :1])
        residual = (model(x) - y).detach()
        kernel = ntk(model, x)
        lr = float(6 / torch.linalg.eigvalsh(kernel)[-1])
        predicted = kernel_prediction(kernel, residual, lr, 30)
        opt = fusedstep.SGD(model.parameters(), lr=lr)
        for _ in range(30):
            opt.zero_grad()
            (((model(x) - y) ** 2).mean() / 2).backward()
            opt.step()
        return float((model(x) - y - predicted).detach().norm() / residual.norm())

    assert departure(2048) < 0.05 < departure(4)


def test_shapes_dtypes_and_forms_of_steps() -> None:
    K, r = torch.diag(torch.tensor([2.0, 1.0])), torch.ones(2, 3)
    assert kernel_prediction(K, r, 0.5, 4).shape == (2, 3)
    assert kernel_prediction(K, r, 0.5, (4, 5)).shape == (2, 2, 3)
    assert kernel_prediction(K, r[:, 0], 0.5, 4).dtype == torch.float32
    assert torch.equal(kernel_prediction(K, r, 0.5, 0), r)
    limit = kernel_prediction(K, r, 2.0, 10**9)  # at the limit a mode flips forever
    assert limit[0].tolist() == [1, 1, 1]
    assert limit[1].tolist() == [0, 0, 0]
    assert torch.equal(kernel_prediction(0 * K, r, 0.5, 9), r)


K, R = torch.eye(2), torch.ones(2)
SKEW = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
PREDICTION = [
    ({"K": 1.0}, "K", "be a tensor", "float", TypeError),
    ({"K": torch.ones(2, 3)}, "K", "be a square matrix", ".*", ValueError),
    ({"K": torch.ones(2, 2).long()}, "K", "be floating-point", "torch.int64", TypeError),
    ({"K": K * math.nan}, "K", "be finite", "NaN or infinity", ValueError),
    ({"K": SKEW}, "K", "be symmetric", "a difference of 0.5", ValueError),
    ({"K": -K}, "K", "be positive semidefinite", "the eigenvalue -1", ValueError),
    ({"residual0": torch.ones(3)}, "residual0", r"have shape \(2,\) or .*", ".*", ValueError),
    ({"residual0": R * math.inf}, "residual0", "be finite", "NaN or infinity", ValueError),
    ({"residual0": [1.0, 1.0]}, "residual0", "be a tensor", "list", TypeError),
    ({"lr": 4.5}, "lr", "be above 0 and at most 4, above which .*", "4.5", ValueError),
    ({"lr": 0.0}, "lr", "be above 0 and at most 4, .*", "0.0", ValueError),
    ({"lr": math.nan}, "lr", "be 0 or more", "nan", ValueError),
    ({"steps": -1}, "steps", "be at least 0", "-1", ValueError),
    ({"steps": [1, 0.5]}, "steps[1]", "be an int", "float 0.5", TypeError),
]


@pytest.mark.parametrize(("changes", "argument", "must", "got", "kind"), PREDICTION)
def test_prediction_refuses(changes, argument, must, got, kind):
    with refuses("kernel_prediction", argument, must, got, kind):
        kernel_prediction(**({"K": K, "residual0": R, "lr": 0.5, "steps": 1} | changes))


FROZEN = nn.Linear(2, 1).requires_grad_(False)
KERNEL = [
    ({"model": lambda x: x}, "model", "be a torch.nn.Module", "function", TypeError),
    ({"model": FROZEN}, "model", "have parameters that require gradients", "none", ValueError),
    ({"x1": [1.0]}, "x1", "be a tensor", "list", TypeError),
    ({"x1": torch.ones(0, 2)}, "x1", "have an example", ".*", ValueError),
    ({"x2": torch.ones(())}, "x2", "have an example", ".*", ValueError),
    ({"chunk_size": 0}, "chunk_size", "be at least 1", "0", ValueError),
]


@pytest.mark.parametrize(("changes", "argument", "must", "got", "kind"), KERNEL)
def test_kernel_refuses(changes, argument, must, got, kind):
    with refuses("ntk", argument, must, got, kind):
        ntk(**({"model": nn.Linear(2, 1), "x1": torch.ones(3, 2)} | changes))
