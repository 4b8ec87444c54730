"""param_groups: which parameters decay, each once, in the model's order."""

import math

import pytest
import torch
from torch import nn

import fusedstep
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


@pytest.mark.parametrize("kind", [torch.optim.AdamW, fusedstep.AdamW])
def test_named_groups_give_an_optimizer_its_parameters_names(kind):
    model = Tied()
    named = kind(param_groups(model, 0.1, named=True))
    assert [group["param_names"] for group in named.param_groups] == [
        ["embedding.weight", "convolution.weight"],
        ["scale", "norm.weight", "norm.bias", "output.bias"],
    ]
    for group, plain in zip(named.param_groups, param_groups(model, 0.1), strict=True):
        assert same(group["params"], plain["params"])
        assert group["weight_decay"] == plain["weight_decay"]


def test_a_checkpoint_without_names_loads_into_named_groups():
    model = Tied()
    plain, named = (
        fusedstep.AdamW(param_groups(model, 0.1, named=named)) for named in (False, True)
    )
    named.load_state_dict(plain.state_dict())
    assert named.param_groups[0]["param_names"][0] == "embedding.weight"


def test_only_what_requires_a_gradient_now_is_there():
    model = Tied()
    model.embedding.requires_grad_(False)
    model.frozen.requires_grad_(True)
    decaying, still = param_groups(model, 0.1)
    assert same(decaying["params"], [model.convolution.weight, model.frozen.weight])
    assert model.frozen.bias is still["params"][-1]


def test_a_parameter_may_have_no_elements_and_the_decay_be_an_int():
    (group,) = param_groups(nn.ParameterList([torch.empty(0, 3)]), 1)
    assert (len(group["params"]), group["weight_decay"]) == (1, 1.0)
    assert type(group["weight_decay"]) is float


def test_named_is_a_bool():
    with pytest.raises(TypeError, match=r"^param_groups: named must be a bool, got list$"):
        param_groups(nn.Linear(1, 1), 0.1, named=["weight"])


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
