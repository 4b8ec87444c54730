"""param_groups: which parameters decay, each once, in the model's order."""

import math

import pytest
import torch
from torch import nn

from fusedstep import param_groups


class Tied(nn.Module):
    """An embedding shared with the output, a norm, a scalar, and a frozen matrix."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.scale = nn.Parameter(torch.ones(()))
        self.output = nn.Linear(3, 5)
        self.output.weight = self.embedding.weight
        self.convolution = nn.Conv1d(3, 3, 2, bias=False)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def same(parameters, expected):
    return [id(p) for p in parameters] == [id(p) for p in expected]


def test_matrices_decay_and_the_rest_does_not():
    model = Tied()
    decaying, still = param_groups(model, 0.1)
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.1, 0.0)
    assert same(decaying["params"], [model.embedding.weight, model.convolution.weight])
    expected = [model.scale, model.norm.weight, model.norm.bias, model.output.bias]
    assert same(still["params"], expected)


def test_the_groups_fit_an_optimizer_and_its_step_decays_only_matrices():
    model = Tied()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(param_groups(model, 0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decays = parameter.requires_grad and parameter.dim() >= 2
        expected = before[name] * (1 - 0.1 * 0.5) if decays else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(
    ("model", "decays"), [(nn.Linear(2, 2, bias=False), [0.1]), (nn.LayerNorm(3), [0.0])]
)
def test_a_group_without_parameters_is_left_out(model, decays):
    assert [group["weight_decay"] for group in param_groups(model, 0.1)] == decays


def test_nothing_to_train_gives_no_groups():
    assert param_groups(nn.Linear(2, 2).requires_grad_(False), 0.1) == []


@pytest.mark.parametrize(
    ("model", "weight_decay", "error", "message"),
    [
        ([torch.ones(2)], 0.1, TypeError, "model must be a torch.nn.Module, got list"),
        (nn.Linear(1, 1), -0.1, ValueError, "weight_decay must be 0 or more, got -0.1"),
        (nn.Linear(1, 1), math.nan, ValueError, "weight_decay must be 0 or more, got nan"),
        (nn.Linear(1, 1), math.inf, ValueError, "weight_decay must be finite, got inf"),
        (nn.Linear(1, 1), "0.1", TypeError, "weight_decay must be a number, got str"),
        (
            nn.LazyLinear(1),
            0.1,
            ValueError,
            "model must have run once, .* got lazy parameter weight",
        ),
    ],
)
def test_param_groups_refuses(model, weight_decay, error, message):
    with pytest.raises(error, match=f"^param_groups: {message}$"):
        param_groups(model, weight_decay)
