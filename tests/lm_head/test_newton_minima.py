"""The minimising methods: literal steps, losses that never rise, and the optimum of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusedstep.lm_head import newton_block_diagonal, newton_bohning, newton_cg, newton_minima
from fusedstep.lm_head.batch import spectrum
from fusedstep.lm_head.newton_minima import _Preconditioner, hessian_product
from fusedstep.lm_head.problem import make_problem
from tests.reference import newton as literal
from tests.support.last_layer import regression, relative

METHODS = (newton_cg, newton_bohning, newton_block_diagonal)
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)


@each_method
@pytest.mark.parametrize("spread", [0.3, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [4, 300])  # 4: every token can be separated, no optimum exists
def test_the_loss_never_rises(method, spread, dtype, count):
    problem = regression(count, width=6, spread=spread, dtype=dtype)
    weight, losses = method(*problem, steps=25)
    assert bool((losses.diff() <= 0).all())
    assert losses[-1] < 0.8 * losses[0]
    assert bool(weight.isfinite().all())
    if dtype == torch.float64:
        measured = literal.mean_loss(weight, *problem[1:])
        torch.testing.assert_close(losses[-1], measured, rtol=1e-9, atol=1e-12)


@each_method
def test_the_loss_constant_has_no_influence(method):
    problem = regression(50)
    plain, shifted = (method(*problem, loss_constant=c, steps=3) for c in (0.0, 0.5))
    assert torch.equal(plain.weight, shifted.weight)


def test_plain_newton_diverges_where_the_line_search_does_not():
    weight, hidden, tokens = regression(300, width=6, spread=20.0)
    start = literal.mean_loss(weight, hidden, tokens)
    size = weight.numel()
    for _ in range(3):
        curvature = literal.hessian(weight, hidden, tokens).reshape(size, size)
        slope = literal.gradient(weight, hidden, tokens).flatten()
        weight = weight - (torch.linalg.pinv(curvature) @ slope).view_as(weight)
    assert literal.mean_loss(weight, hidden, tokens) > 2 * start


def test_a_hessian_product_is_that_of_autograd():
    problem = regression(20)
    torch.manual_seed(0)
    vector = torch.randn_like(problem.weight)
    checked = make_problem("test", *problem, 0.0, 1, 7)
    expected = torch.tensordot(literal.hessian(*problem), vector, 2)
    assert relative(hessian_product(checked, problem.weight, vector), expected) < 1e-12


def test_cg_reaches_the_optimum_of_lbfgs():
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is in the extra `bench`")
    problem = regression(300, width=6)

    def loss_and_gradient(flat: np.ndarray):
        weight = torch.from_numpy(flat).view(problem.weight.shape)
        loss = literal.mean_loss(weight, *problem[1:])
        return loss.item(), literal.gradient(weight, *problem[1:]).flatten().numpy()

    start = problem.weight.flatten().numpy().copy()
    options = {"maxiter": 2000, "ftol": 0.0, "gtol": 1e-9}
    best = optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    weight, losses = newton_cg(*problem, steps=10)
    assert literal.gradient(weight, *problem[1:]).norm() < 1e-9
    assert float(losses[-1]) == pytest.approx(best.fun, rel=1e-10)
    # The rows' mean is free: it changes no probability.
    found = torch.from_numpy(best.x).view(weight.shape)
    assert relative(weight - weight.mean(0), found - found.mean(0)) < 1e-5


def test_the_preconditioner_of_cg_inverts_the_damped_product():
    torch.manual_seed(0)
    hidden, curvature = torch.randn(40, 5).double(), torch.rand(7).double()
    moment, ridge = hidden.mT @ hidden / 40, 0.3
    precondition = _Preconditioner(curvature, spectrum(moment), ridge)
    vector = torch.randn(7, 5).double()
    image = curvature[:, None] * (vector @ moment) + ridge * vector
    assert relative(precondition(image), vector) < 1e-5


def test_cg_needs_few_products_though_most_classes_are_hardly_expected(monkeypatch):
    """Their curvature is far below the damping, which the preconditioner must know of."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(600, 12, generator=generator, dtype=torch.float64) * 3**0.5
    expected = (hidden @ weight.mT).softmax(1)
    tokens = torch.multinomial(expected, 1, generator=generator)[:, 0]
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return hessian_product(*arguments)

    monkeypatch.setattr(newton_minima, "hessian_product", counted)
    losses = newton_cg(weight, hidden, tokens, steps=4).losses
    assert losses[-1] < 0.2 * losses[0]
    assert len(calls) <= 20  # 49 where the preconditioner leaves the damping out


def test_a_step_of_cg_is_newtons_where_that_lowers_the_loss():
    problem = regression(300, width=6)
    near = newton_cg(*problem, steps=5).weight
    slope = literal.gradient(near, *problem[1:])
    size = near.numel()
    curvature = literal.hessian(near, *problem[1:]).reshape(size, size)
    newton = near - (torch.linalg.pinv(curvature) @ slope.flatten()).view_as(near)
    stepped = newton_cg(near, *problem[1:]).weight
    gap = (stepped - stepped.mean(0)) - (newton - newton.mean(0))
    # Eisenstat and Walker: a residual of the root of |G|, here below a hundredth.
    assert slope.norm() < 1e-3
    assert gap.norm() < 0.1 * (near - newton).norm()


@pytest.mark.parametrize("count", [3, 300])
def test_a_step_of_bohning_is_the_pseudo_inverse_of_the_bound(count):
    problem = regression(count, width=6)
    weight = newton_bohning(*problem).weight
    assert relative(weight, literal.bohning(*problem)) < 1e-9


def test_bohning_stays_where_rounding_errors_are_all_that_is_left():
    problem = regression(300, width=3, vocabulary=4, dtype=torch.float32)
    losses = newton_bohning(*problem, steps=300).losses
    assert bool((losses.diff() <= 0).all())
    assert losses[-1] == losses[-2]


def test_bohning_converges_to_the_optimum_of_cg():
    problem = regression(300, width=3, vocabulary=4)
    best = newton_cg(*problem, steps=10).losses[-1]
    assert newton_bohning(*problem, steps=200).losses[-1] == pytest.approx(float(best), rel=1e-6)


def test_a_step_of_the_block_diagonal_is_half_of_newtons_with_the_blocks():
    problem = regression(300, width=6)
    weight = newton_block_diagonal(*problem, damping=1e-3).weight
    assert relative(weight, literal.block_diagonal(*problem, 1e-3, 0.5)) < 1e-9


def test_the_blocks_are_made_for_some_classes_and_tokens_at_a_time(monkeypatch):
    problem = regression(50, width=6)
    whole = newton_block_diagonal(*problem, steps=2).weight
    monkeypatch.setattr(newton_minima, "CHUNK_ELEMENTS", 4 * 36)
    assert relative(newton_block_diagonal(*problem, steps=2).weight, whole) < 1e-12
