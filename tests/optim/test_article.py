"""The article "Understanding the Design of Optimizers" (Tri Vo, dev.to), equation by equation.

Each equation is written out in NumPy's float64; fusedstep's optimizer must walk the same way down a
noisy ravine. Adam and AdamW stand in the article as pictures: here as in Kingma and Ba 2015,
Algorithm 1, and Loshchilov and Hutter 2019, Algorithm 2. torch.optim's classes walk along: where
the two part, it shows which of them left the equation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import fusedstep

Array = np.ndarray
Equation = Callable[..., tuple[Array, ...]]

STEPS = 30
ETA, EPSILON = 0.05, 1e-8  # η, ϵ
BETA = 0.9  # β of momentum and of RMSProp
BETA1, BETA2 = 0.9, 0.999  # β₁, β₂ of Adam
LAMBDA = 0.1  # λ, the weight decay of AdamW
START = np.array([-3.0, 2.0, 0.5, -1e-3])
CURVATURE = np.array([20.0, 1.0, 0.1, 5.0])  # steep across the ravine, flat along it
SAMPLES = np.random.default_rng(0).standard_normal((STEPS + 1, 4))  # the mini-batches


def gradient(theta: Array, t: int) -> Array:
    """∇L(θ) of the loss on mini-batch t: L(θ) = Σ curvature (θ - sample)² / 2."""
    return CURVATURE * (theta - SAMPLES[t])


# θ is θₜ₋₁ on entry and θₜ on return, as m and v are; g is ∇L(θₜ₋₁), though the article has ∇L(θₜ).


def sgd(t: int, theta: Array, g: Array) -> tuple[Array, ...]:
    return (theta - ETA * g,)  # θₜ = θₜ₋₁ - η ∇L


def momentum(t: int, theta: Array, g: Array, v: Array) -> tuple[Array, ...]:
    v = BETA * v + (1 - BETA) * g  # vₜ = β vₜ₋₁ + (1 - β) ∇L
    return theta - ETA * v, v  # θₜ = θₜ₋₁ - η vₜ


def adagrad(t: int, theta: Array, g: Array, v: Array) -> tuple[Array, ...]:
    v = v + g**2  # vₜ = vₜ₋₁ + (∇L)²
    return theta - ETA / (np.sqrt(v) + EPSILON) * g, v  # θₜ = θₜ₋₁ - η / (√vₜ + ϵ) ∇L


def rmsprop(t: int, theta: Array, g: Array, v: Array) -> tuple[Array, ...]:
    v = BETA * v + (1 - BETA) * g**2  # vₜ = β vₜ₋₁ + (1 - β) (∇L)²
    return theta - ETA / (np.sqrt(v) + EPSILON) * g, v  # θₜ = θₜ₋₁ - η / (√vₜ + ϵ) ∇L


def adam(t: int, theta: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
    m = BETA1 * m + (1 - BETA1) * g  # mₜ = β₁ mₜ₋₁ + (1 - β₁) ∇L
    v = BETA2 * v + (1 - BETA2) * g**2  # vₜ = β₂ vₜ₋₁ + (1 - β₂) (∇L)²
    m_hat = m / (1 - BETA1**t)  # m̂ₜ = mₜ / (1 - β₁ᵗ)
    v_hat = v / (1 - BETA2**t)  # v̂ₜ = vₜ / (1 - β₂ᵗ)
    return theta - ETA * m_hat / (np.sqrt(v_hat) + EPSILON), m, v  # θₜ = θₜ₋₁ - η m̂ₜ / (√v̂ₜ + ϵ)


def adamw(t: int, theta: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
    moved, m, v = adam(t, theta, g, m, v)
    return moved - ETA * LAMBDA * theta, m, v  # θₜ = θₜ₋₁ - η (m̂ₜ / (√v̂ₜ + ϵ) + λ θₜ₋₁)


# Which arguments give which equation, and in which state its m and v are found.
ZERO = (np.zeros(4),)
AS_OPTIMIZER: dict[str, tuple[Equation, str, dict[str, Any], Sequence[Array], tuple[str, ...]]] = {
    "SGD": (sgd, "SGD", {}, (), ()),
    # The article does not say what v₀ is. torch's first buffer is the gradient: v₀ = ∇L(θ₀).
    "momentum from the first gradient": (
        momentum, "SGD", {"momentum": BETA, "dampening": BETA}, (gradient(START, 1),),
        ("momentum_buffer",),
    ),
    # v₀ = 0: the buffer without dampening is vₜ / (1 - β), from the first step on.
    "momentum from zero": (momentum, "SGD", {"momentum": BETA, "lr": ETA * (1 - BETA)}, ZERO, ()),
    # ϵ stands outside the root, as torch's does; its default is 1e-10 there.
    "AdaGrad": (adagrad, "Adagrad", {"eps": EPSILON}, ZERO, ("sum",)),
    # β is torch's alpha, 0.99 by default.
    "RMSProp": (rmsprop, "RMSprop", {"alpha": BETA, "eps": EPSILON}, ZERO, ("square_avg",)),
    "Adam": (
        adam, "Adam", {"betas": (BETA1, BETA2), "eps": EPSILON}, ZERO * 2, ("exp_avg", "exp_avg_sq")
    ),
    # torch multiplies θ by 1 - η λ first, which is the same sum.
    "AdamW": (
        adamw, "AdamW", {"betas": (BETA1, BETA2), "eps": EPSILON, "weight_decay": LAMBDA},
        ZERO * 2, ("exp_avg", "exp_avg_sq"),
    ),
}  # fmt: skip


@pytest.fixture(params=[fusedstep, torch.optim], ids=["fusedstep", "torch"])
def optim(request: pytest.FixtureRequest) -> ModuleType:
    """Where the optimizers are taken from: the equations hold for torch's as well."""
    return request.param


@pytest.mark.parametrize("name", AS_OPTIMIZER)
def test_follows_the_equation(name: str, optim: ModuleType, device: torch.device) -> None:
    equation, class_name, options, memory, names = AS_OPTIMIZER[name]
    theta, samples = START, torch.tensor(SAMPLES, device=device)
    curvature = torch.tensor(CURVATURE, device=device)
    param = torch.tensor(START, device=device, requires_grad=True)
    optimizer = getattr(optim, class_name)([param], **{"lr": ETA, **options})
    for t in range(1, STEPS + 1):
        optimizer.zero_grad()
        (curvature * (param - samples[t]) ** 2 / 2).sum().backward()
        optimizer.step()
        theta, *memory = equation(t, theta, gradient(theta, t), *memory)
        close(param, theta)
        if names:
            for state, expected in zip(names, memory, strict=True):
                close(optimizer.state[param][state], expected)


def close(actual: torch.Tensor, expected: Array | float) -> None:
    """Equal to the last digits but three or so of float64."""
    np.testing.assert_allclose(actual.detach().cpu(), expected, rtol=1e-11, atol=1e-13)


def moments(
    optim: ModuleType, class_name: str, grads: Sequence[Array], **options: Any
) -> Iterator[tuple[int, torch.Tensor, dict[str, torch.Tensor]]]:
    """t, how far step t moved the parameter, and its state, for gradients that are given."""
    param = torch.zeros(grads[0].shape, dtype=torch.float64, requires_grad=True)
    optimizer = getattr(optim, class_name)([param], lr=ETA, **options)
    for t, grad in enumerate(grads, start=1):
        before = param.detach().clone()
        param.grad = torch.tensor(grad)
        optimizer.step()
        yield t, before - param.detach(), optimizer.state[param]


def test_rmsprop_forgets_exponentially(optim: ModuleType) -> None:
    g, v = SAMPLES, [np.zeros(4)]  # g[t - 1] is the gradient of step t, v[t] what it leaves
    for t, _, state in moments(optim, "RMSprop", g, alpha=BETA):
        v.append(state["square_avg"].numpy().copy())
        if t > 1:  # vₜ = (1 - β) gₜ² + β (1 - β) gₜ₋₁² + β² vₜ₋₂
            unrolled = (1 - BETA) * g[t - 1] ** 2 + BETA * (1 - BETA) * g[t - 2] ** 2
            close(state["square_avg"], unrolled + BETA**2 * v[t - 2])
        close(state["square_avg"], weighted_sum(g[:t] ** 2, BETA))


def weighted_sum(terms: Array, beta: float) -> Array:
    """(1 - β) Σᵢ βᵗ⁻ⁱ termᵢ, of t terms: what a moving average from zero comes to."""
    weights = beta ** np.arange(len(terms))[::-1]
    return (1 - beta) * (weights[:, None] * terms).sum(0)


def test_adam_general_formula_with_m0_zero(optim: ModuleType) -> None:
    g = SAMPLES
    for t, _, state in moments(optim, "Adam", g, betas=(BETA1, BETA2)):
        close(state["exp_avg"], weighted_sum(g[:t], BETA1))
        close(state["exp_avg_sq"], weighted_sum(g[:t] ** 2, BETA2))
        # For any μ, here the last gradient: mₜ = μ (1 - β₁ᵗ) + ζ
        mu, zeta = g[t - 1], weighted_sum(g[:t] - g[t - 1], BETA1)
        close(state["exp_avg"], mu * (1 - BETA1**t) + zeta)


def test_adam_stationary_gradients_scale_m_until_it_is_corrected(optim: ModuleType) -> None:
    mu, scales = np.array([3.0, -0.2, 1e-6]), {}
    for t, moved, state in moments(optim, "Adam", [mu] * 20, betas=(BETA1, BETA2), eps=EPSILON):
        close(state["exp_avg"], mu * (1 - BETA1**t))  # ζ = 0
        close(state["exp_avg_sq"], mu**2 * (1 - BETA2**t))
        scales[t] = (state["exp_avg"].numpy() / mu).round(2)
        close(moved, ETA * mu / (np.abs(mu) + EPSILON))  # m̂ₜ = μ, v̂ₜ = μ²: the same at every t
    assert (scales[1] == 0.1).all()
    assert (scales[20] == 0.88).all()


def test_adam_expectation_of_m(optim: ModuleType) -> None:
    mu, sigma, count = 0.7, 2.0, 100_000
    grads = np.random.default_rng(1).normal(mu, sigma, (20, count))
    for t, _, state in moments(optim, "Adam", grads, betas=(BETA1, BETA2)):
        spread = sigma * (1 - BETA1) * np.sqrt(sum(BETA1 ** (2 * i) for i in range(t)) / count)
        mean = state["exp_avg"].mean().item()
        assert abs(mean - mu * (1 - BETA1**t)) < 4 * spread, t  # E[mₜ] = μ (1 - β₁ᵗ)


def test_adam_forgets_that_gradients_were_others(optim: ModuleType) -> None:
    mu, old, new = np.array([1.5]), 50, 100
    *_, (t, _, state) = moments(optim, "Adam", [-mu] * old + [mu] * new, betas=(BETA1, BETA2))
    zeta = -2 * mu * (BETA1**new - BETA1**t)  # of the old gradients, 2 μ away from the mean now
    close(state["exp_avg"], mu * (1 - BETA1**t) + zeta)
    assert np.abs(zeta / mu) < 1e-4


def test_adamw_without_decay_is_adam(optim: ModuleType) -> None:
    ways = [moments(optim, name, SAMPLES, weight_decay=0.0) for name in ("Adam", "AdamW")]
    for (_, moved, _), (_, as_adamw, _) in zip(*ways, strict=True):
        assert torch.equal(moved, as_adamw)
