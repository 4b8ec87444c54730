"""The root-finding methods against their literal loops, and why the published ones diverge."""

from __future__ import annotations

import pytest
import torch

from fusedstep.lm_head import (
    newton_components,
    newton_components_recalculated,
    newton_full,
    newton_joint,
)
from tests.reference import newton as literal
from tests.support.last_layer import regression, relative
from tests.support.tensors import assert_same_bits

LITERAL = {
    newton_full: literal.full,
    newton_components: literal.components,
    newton_components_recalculated: literal.components_recalculated,
}
each_method = pytest.mark.parametrize("method", LITERAL, ids=lambda m: m.__name__)


@each_method
@pytest.mark.parametrize("constant", [0.0, 0.4])
@pytest.mark.parametrize("count", [1, 2, 12, 40])
def test_equals_its_literal_loop(method, constant, count):
    problem = regression(count, width=5, vocabulary=9)
    weight, losses = method(*problem, loss_constant=constant, steps=1)
    assert relative(weight, LITERAL[method](*problem, constant)) < 1e-9
    expected = [literal.mean_loss(w, *problem[1:]) for w in (problem.weight, weight)]
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-12, atol=1e-12)


@each_method
def test_two_steps_are_a_step_and_a_step(method):
    problem = regression(6)
    both = method(*problem, loss_constant=0.5, steps=2)
    first = method(*problem, loss_constant=0.5)
    second = method(first.weight, *problem[1:], loss_constant=0.5)
    assert relative(both.weight, second.weight) < 1e-10
    losses = torch.cat([first.losses, second.losses[1:]])
    torch.testing.assert_close(both.losses, losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 40, 1000])
def test_blocks_do_not_change_the_iterates(block_size):
    problem = regression(40)
    weight, losses = newton_components_recalculated(*problem, steps=2, block_size=block_size)
    expected = problem.weight
    for step in range(2):
        expected = literal.components_recalculated(expected, *problem[1:], 0.0)
        loss = literal.mean_loss(expected, *problem[1:])
        torch.testing.assert_close(losses[step + 1], loss, rtol=1e-9, atol=0)
    assert relative(weight, expected) < 1e-10


def test_a_batch_is_visited_position_by_position():
    weight, hidden, tokens = regression(12)
    result = newton_components_recalculated(weight, hidden.view(3, 4, 5), tokens.view(3, 4))
    order = torch.arange(12).view(3, 4).T.flatten()
    expected = literal.components_recalculated(weight, hidden[order], tokens[order], 0.0)
    assert relative(result.weight, expected) < 1e-10


def test_the_recalculated_steps_solve_what_can_be_solved():
    problem = regression(12, width=16)  # more unknowns for a token than there are tokens
    losses = newton_components_recalculated(*problem, loss_constant=0.05, steps=30).losses
    assert losses[-1] == pytest.approx(0.05, rel=1e-3)


def test_the_published_full_step_moves_the_loss_by_the_rank_times_what_was_asked_for():
    problem = regression(40, width=5, vocabulary=9)
    gradient = literal.gradient(*problem)
    before = literal.mean_loss(*problem)
    asked = 1e-4 * before  # small, so that the linear model holds
    moved = {}
    for scaling in ("published", "rank", "frobenius"):
        result = newton_full(*problem, loss_constant=float(before - asked), scaling=scaling)
        moved[scaling] = float((result.losses[0] - result.losses[1]) / asked)
        linear = (gradient * (problem.weight - result.weight)).sum() / asked
        assert linear == pytest.approx(5 if scaling == "published" else 1, rel=1e-9)
    assert moved["rank"] == pytest.approx(1, rel=0.2)
    assert moved["frobenius"] == pytest.approx(1, rel=1e-3)


def test_the_published_full_step_diverges_and_the_corrected_one_converges():
    problem = regression(400, width=16, vocabulary=24)
    constant = float(literal.mean_loss(*problem)) * 0.9  # a root exists
    published = newton_full(*problem, loss_constant=constant, steps=6).losses
    assert published[-1] > 10 * published[0]
    corrected = newton_full(*problem, loss_constant=constant, steps=6, scaling="frobenius").losses
    assert corrected[-1] == pytest.approx(constant, rel=1e-9)


def test_added_up_components_diverge_and_divided_ones_converge():
    problem = regression(400, width=6, vocabulary=5)
    constant = 0.5
    published = newton_components(*problem, loss_constant=constant, steps=4).losses
    assert published[-1] > 10 * published[0]
    for scaling in ("mean", "spectral"):
        result = newton_components(*problem, loss_constant=constant, steps=20, scaling=scaling)
        losses = result.losses
        assert losses[-1] < losses[0]


def test_the_spectral_scaling_divides_by_the_largest_eigenvalue():
    problem = regression(40)
    rows = literal.jacobian(*problem)
    rows = rows / rows.norm(dim=1, keepdim=True)
    eigenvalue = torch.linalg.matrix_norm(rows, 2).square()
    assert eigenvalue > 2
    published, spectral = (
        newton_components(*problem, scaling=scaling, power_iterations=100).weight
        for scaling in ("published", "spectral")
    )
    expected = problem.weight + (published - problem.weight) / eigenvalue
    assert relative(spectral, expected) < 1e-7


@pytest.mark.parametrize(
    "method", [newton_components, newton_components_recalculated, newton_joint]
)
def test_only_uphill_moves_a_token_below_the_constant(method):
    weight, hidden, tokens = regression(12)
    highest = float(literal.token_losses(weight, hidden, tokens).max())
    downhill = method(weight, hidden, tokens, loss_constant=highest, uphill=False)
    assert_same_bits(downhill.weight, weight)
    assert method(weight, hidden, tokens, loss_constant=highest).losses.diff() > 0
    some = method(weight, hidden, tokens, loss_constant=0.5 * highest, uphill=False)
    assert some.losses.diff() < 0


def test_sure_tokens_throw_the_published_steps_far_and_do_not_without_uphill():
    weight, hidden, tokens = regression(300, width=20, vocabulary=40, spread=2.0)
    published, downhill = (
        newton_components_recalculated(
            weight, hidden, tokens, loss_constant=0.5, steps=6, uphill=uphill
        ).losses
        for uphill in (True, False)
    )
    assert published[1:].min() > 1e3 * published[0]
    assert downhill[-1] < 0.2 * downhill[0]


@each_method
def test_tokens_without_a_gradient_take_no_step(method):
    weight, hidden, tokens = regression(3)
    hidden = torch.zeros_like(hidden)
    assert_same_bits(method(weight, hidden, tokens, steps=2).weight, weight)


@pytest.mark.parametrize("constant", [0.0, 0.4])
@pytest.mark.parametrize("count", [1, 12, 20, 60])  # 60 equations, at most 8 x 5 unknowns
def test_joint_equals_the_pseudo_inverse_of_the_jacobian(count, constant):
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


def test_joint_rtol_leaves_eigenvalues_out():
    problem = regression(12)
    assert_same_bits(newton_joint(*problem, rtol=1.0).weight, problem.weight)  # none is larger


def test_joint_groups_of_one_token_are_the_recalculated_components():
    problem = regression(12)
    ours = newton_joint(*problem, loss_constant=0.3, steps=2, group_size=1)
    theirs = newton_components_recalculated(*problem, loss_constant=0.3, steps=2)
    assert relative(ours.weight, theirs.weight) < 1e-10


def test_joint_groups_are_visited_in_turn():
    weight, hidden, tokens = regression(12)
    expected = weight
    for part in (slice(0, 5), slice(5, 10), slice(10, 12)):
        expected = literal.joint(expected, hidden[part], tokens[part], 0.1)
    ours = newton_joint(weight, hidden, tokens, loss_constant=0.1, group_size=5).weight
    assert relative(ours, expected) < 1e-8


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_joint_damping_is_that_of_levenberg_and_marquardt(damping):
    problem = regression(30)
    rows = literal.jacobian(*problem)
    kernel = rows @ rows.mT
    kernel += damping * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype)
    step = rows.mT @ torch.linalg.solve(kernel, literal.token_losses(*problem) - 0.2)
    expected = problem.weight - step.view(problem.weight.shape)
    ours = newton_joint(*problem, loss_constant=0.2, damping=damping).weight
    assert relative(ours, expected) < 1e-9


def test_joint_converges_quadratically_where_there_is_a_root():
    problem = regression(12, width=16)
    losses = newton_joint(*problem, loss_constant=0.05, steps=10).losses
    errors = (losses - 0.05).abs()
    assert errors[-1] < 1e-12
    late = errors[(errors < 1e-2) & (errors > 1e-14)]
    assert len(late) >= 2
    assert bool((late[1:] < 1e3 * late[:-1].square()).all())
