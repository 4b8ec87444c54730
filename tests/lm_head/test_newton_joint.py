"""The joint root-finding step against the Jacobian's pseudo-inverse; its groups and its damping."""

from __future__ import annotations

import pytest
import torch

from fusedstep.lm_head import newton_components_recalculated, newton_joint
from tests.reference import newton as literal
from tests.support.last_layer import regression, relative
from tests.support.tensors import assert_same_bits


@pytest.mark.parametrize("constant", [0.0, 0.4])
@pytest.mark.parametrize("count", [1, 12, 20, 60])  # 60 equations, at most 8 x 5 unknowns
def test_equals_the_pseudo_inverse_of_the_jacobian(count, constant):
    problem = regression(count, width=5, vocabulary=9)
    weight, losses = newton_joint(*problem, loss_constant=constant)
    assert relative(weight, literal.joint(*problem, constant)) < 1e-8
    after = literal.mean_loss(weight, *problem[1:])
    torch.testing.assert_close(losses[1], after, rtol=1e-12, atol=0)


def test_equal_tokens_share_one_step():
    weight, hidden, tokens = regression(4)
    once = newton_joint(weight, hidden, tokens).weight
    twice = newton_joint(weight, torch.cat([hidden, hidden]), torch.cat([tokens, tokens])).weight
    assert relative(twice, once) < 1e-9


def test_tokens_that_differ_by_rounding_count_as_equal_in_float32():
    torch.manual_seed(0)
    weight, hidden, tokens = regression(4, dtype=torch.float32)
    once = newton_joint(weight, hidden, tokens).weight
    rounded = hidden * (1 + 2 * torch.finfo(torch.float32).eps * torch.randn(hidden.shape))
    twice = newton_joint(weight, torch.cat([hidden, rounded]), torch.cat([tokens, tokens])).weight
    assert relative(twice, once) < 1e-5


def test_rtol_leaves_eigenvalues_out():
    problem = regression(12)
    assert_same_bits(newton_joint(*problem, rtol=1.0).weight, problem.weight)  # none is larger


def test_groups_of_one_token_are_the_recalculated_components():
    problem = regression(12)
    ours = newton_joint(*problem, loss_constant=0.3, steps=2, group_size=1)
    theirs = newton_components_recalculated(*problem, loss_constant=0.3, steps=2)
    assert relative(ours.weight, theirs.weight) < 1e-10


def test_groups_are_visited_in_turn():
    weight, hidden, tokens = regression(12)
    expected = weight
    for part in (slice(0, 5), slice(5, 10), slice(10, 12)):
        expected = literal.joint(expected, hidden[part], tokens[part], 0.1)
    ours = newton_joint(weight, hidden, tokens, loss_constant=0.1, group_size=5).weight
    assert relative(ours, expected) < 1e-8


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_damping_is_that_of_levenberg_and_marquardt(damping):
    problem = regression(30)
    rows = literal.jacobian(*problem)
    kernel = rows @ rows.mT
    kernel += damping * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype)
    step = rows.mT @ torch.linalg.solve(kernel, literal.token_losses(*problem) - 0.2)
    expected = problem.weight - step.view(problem.weight.shape)
    ours = newton_joint(*problem, loss_constant=0.2, damping=damping).weight
    assert relative(ours, expected) < 1e-9


def test_converges_quadratically_where_there_is_a_root():
    problem = regression(12, width=16)
    losses = newton_joint(*problem, loss_constant=0.05, steps=10).losses
    errors = (losses - 0.05).abs()
    assert errors[-1] < 1e-12
    late = errors[(errors < 1e-2) & (errors > 1e-14)]
    assert len(late) >= 2
    assert bool((late[1:] < 1e3 * late[:-1].square()).all())
