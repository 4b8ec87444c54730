"""Real optimizers in the noisy quadratic model: a test of the kernels by physics.

Where a rule is linear in weights and gradients, theta is normal at every step, so the mean of
theta^2 over n runs has the standard error E theta^2 sqrt(2 / n). The curvatures are independent:
the squares of their deviations, in standard errors, add up to a chi-square. A right kernel fails a
test with the probability FALSE_ALARM, for the seeds here once and for all. With about 50 such
tests, one of 200 choices of the seeds would make one fail.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

import fusedstep
from fusedstep.nqm import loss_curve, simulate
from fusedstep.nqm.model import make_model
from tests.nqm import published
from tests.support.refusals import refuses

stats = pytest.importorskip("scipy.stats", reason="needs the test extra: scipy")

FALSE_ALARM = 1e-4
DIM, RUNS = 12, 8192
H = 1 / np.arange(1, DIM + 1)
NOISY = {"batch_size": 4, "steps": [120], "dim": DIM, "bins": None, "runs": RUNS}
# Steps far below a bfloat16's last bit, and next to no noise that would carry them over it.
SLOW = NOISY | {"batch_size": 2**16, "steps": [400]}
BFLOAT16 = {"dtype": torch.bfloat16}


def sgd(**options):
    return functools.partial(fusedstep.SGD, **options)


def second_moments(rule: str, setting: dict, lr: float, m: float = 0.0) -> np.ndarray:
    """E theta^2 of each curvature by the paper's recursion."""
    return np.array(
        [
            published.losses(rule, h, 2 / h, setting["batch_size"], lr, m, setting["steps"][0])[-1]
            for h in np.split(H, DIM)
        ]
    )


def probability(found, expected: np.ndarray) -> float:
    """Of deviations as large as these, if `expected` is right and theta is normal."""
    which = slice(-len(expected), None)  # the smallest curvatures, or all
    deviations = (found.second_moments[-1, which] / expected - 1) / math.sqrt(2 / RUNS)
    return float(stats.chi2.sf((deviations**2).sum(), len(expected)))


# --- rules that have a closed form ----------------------------------------------------------------

LOW_BIT = {
    "float64": {"dtype": torch.float64},
    "bfloat16": {"state_dtype": torch.bfloat16},
    "int8": {"state_dtype": "int8"},
    "float32 master": {"master": "float32"} | BFLOAT16,
    "remainder": {"master": "remainder"} | BFLOAT16,
    "correction": {"master": "correction"} | BFLOAT16,
    "correction and int8": {"master": "correction", "state_dtype": "int8"} | BFLOAT16,
}


@pytest.mark.parametrize(
    ("rule", "m", "options"),
    [
        ("sgd", 0.0, {}),
        ("momentum", 0.9, {"momentum": 0.9}),
        ("momentum", 0.99, {"momentum": 0.99}),
        ("ema", 0.95, {"ema_decay": 0.95}),
    ],
    ids=["sgd", "momentum", "more momentum", "average"],
)
def test_second_moments_are_the_closed_form(rule, m, options, device):
    lr = 0.05
    found = simulate(sgd(lr=lr, **options), average=rule == "ema", seed=1, device=device, **NOISY)
    expected = second_moments(rule, NOISY, lr, m)
    assert probability(found, expected) > FALSE_ALARM
    exact = loss_curve(rule, batch_size=4, lr=lr, momentum=m, steps=[120], dim=DIM, bins=None)
    assert found.losses == pytest.approx(exact, abs=4 * found.standard_errors[0])


@pytest.mark.parametrize("state", LOW_BIT)
@pytest.mark.parametrize("setting", [NOISY, SLOW], ids=["noisy", "slow"])
def test_state_of_fewer_bits_has_the_same_second_moments(state, setting, device):
    options = dict(LOW_BIT[state])
    dtype, lr = options.pop("dtype", torch.float32), 0.05 if setting is NOISY else 0.0005
    found = simulate(
        sgd(lr=lr, momentum=0.9, **options), dtype=dtype, seed=2, device=device, **setting
    )
    assert probability(found, second_moments("momentum", setting, lr, 0.9)) > FALSE_ALARM


def test_optimizers_that_read_gradients_elsewhere():
    found, expected = (
        simulate(sgd(lr=0.05, grad_attribute=name), seed=1, **NOISY)
        for name in ("main_grad", "grad")
    )
    assert np.array_equal(found.losses, expected.losses)


@pytest.mark.parametrize("master", ["remainder", "correction"])
def test_the_average_of_parameters_of_fewer_bits(master):
    make = sgd(lr=0.05, ema_decay=0.95, master=master)
    found = simulate(make, average=True, seed=3, **BFLOAT16, **NOISY)
    assert probability(found, second_moments("ema", NOISY, 0.05, 0.95)) > FALSE_ALARM


def test_parameters_rounded_to_nearest_stay_where_they_are():
    # What the masters are for; and a wrong kernel is seen.
    expected = second_moments("sgd", SLOW, 0.005)
    kept = simulate(sgd(lr=0.005, master="correction"), seed=4, **BFLOAT16, **SLOW)
    assert probability(kept, expected) > FALSE_ALARM
    lost = simulate(sgd(lr=0.005), seed=4, **BFLOAT16, **SLOW)
    assert probability(lost, expected) < 1e-100
    assert lost.losses[0] > 2 * kept.losses[0]


@pytest.mark.parametrize(
    ("options", "m"),
    [
        ({"lr": 0.0525, "momentum": 0.9}, 0.9),
        ({"lr": 0.05, "momentum": 0.905}, 0.9),
        ({"lr": 0.05, "momentum": 0.9, "dampening": 0.05}, 0.9),
        ({"lr": 0.05, "momentum": 0.9, "nesterov": True}, 0.9),
        ({"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02}, 0.9),
    ],
    ids=["rate", "momentum", "dampening", "nesterov", "decay"],
)
def test_another_rule_is_told_apart(options, m):
    # Each is 2 to 10 % from the rule that is claimed.
    found = simulate(sgd(**options), seed=5, **NOISY)
    assert probability(found, second_moments("momentum", NOISY, 0.05, m)) < 1e-6


# --- adaptive rules: a limit, and samples of the same recursion -----------------------------------


def adam(theta, g, state, t):
    """Adam as Kingma and Ba write it: lr 0.02, betas 0.9 and 0.99."""
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.99 * state.get("v", 0.0) + 0.01 * g**2
    first, second = state["m"] / (1 - 0.9**t), state["v"] / (1 - 0.99**t)
    return theta - 0.02 * first / np.sqrt(second)


def rmsprop(theta, g, state, t):
    """RMSprop: lr 0.02, alpha 0.95, momentum 0.5."""
    state["v"] = 0.95 * state.get("v", 0.0) + 0.05 * g**2
    state["b"] = 0.5 * state.get("b", 0.0) + g / np.sqrt(state["v"])
    return theta - 0.02 * state["b"]


def lion(theta, g, state, t):
    """Lion: lr 0.01, betas 0.9 and 0.99."""
    m = state.get("m", 0.0)
    state["m"] = 0.99 * m + 0.01 * g
    return theta - 0.01 * np.sign(0.9 * m + 0.1 * g)


ADAPTIVE = {
    "Adam": (adam, lambda p, **o: fusedstep.Adam(p, lr=0.02, betas=(0.9, 0.99), **o)),
    "RMSprop": (rmsprop, lambda p, **o: fusedstep.RMSprop(p, 0.02, 0.95, momentum=0.5, **o)),
    "Lion": (lion, lambda p, **o: fusedstep.Lion(p, lr=0.01, **o)),
}


@functools.cache
def sampled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean of theta^2 of each curvature over runs of their own, float64, and their variance."""
    rule, rng, state = ADAPTIVE[name][0], np.random.default_rng(7), {}
    theta = rng.standard_normal((RUNS, DIM))
    for t in range(1, NOISY["steps"][0] + 1):
        noise = np.sqrt(H / NOISY["batch_size"]) * rng.standard_normal(theta.shape)
        theta = rule(theta, H * theta + noise, state, t)
    return (theta**2).mean(0), (theta**2).var(0)


@pytest.mark.parametrize("state", ["float32", *LOW_BIT])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_rules_have_the_second_moments_of_samples_in_float64(name, state):
    options = dict(LOW_BIT.get(state, {}))
    dtype = options.pop("dtype", torch.float32)
    make = functools.partial(ADAPTIVE[name][1], **options)
    found = simulate(make, dtype=dtype, seed=8, **NOISY)
    expected, variance = sampled(name)
    deviations = (found.second_moments[-1] - expected) / np.sqrt(2 * variance / RUNS)
    assert stats.chi2.sf((deviations**2).sum(), DIM) > FALSE_ALARM


# The model's rule "adam" divides by the mean square of the gradient over all runs. A real one has
# only the average over its own past. The two are the same at rest, where a long average is over all
# that a run does, and where the gradient is noise, the same for every run and step.

LONG_MEMORY = {
    "Adam": lambda p: fusedstep.Adam(p, lr=0.4, betas=(0.0, 0.995)),
    "RMSprop": lambda p: fusedstep.RMSprop(p, lr=0.4, alpha=0.995),
    "Adam, bfloat16": lambda p: fusedstep.Adam(
        p, lr=0.4, betas=(0.0, 0.995), state_dtype=torch.bfloat16
    ),
    "Adam, int8": lambda p: fusedstep.Adam(p, lr=0.4, betas=(0.0, 0.995), state_dtype="int8"),
}


@pytest.mark.parametrize("name", LONG_MEMORY)
def test_adaptive_rules_come_to_the_models_rest(name, device):
    setting = NOISY | {"batch_size": 1, "steps": [1500]}
    k = 0.4 * np.sqrt(H)
    at_rest = k / 2 * (k / 4 + np.sqrt(k**2 / 16 + 1)) / H
    loss = loss_curve("adam", batch_size=1, lr=0.4, steps=[1500], dim=DIM, bins=None)
    assert 0.5 * (H * at_rest).sum() == pytest.approx(loss[0], rel=1e-9)
    found = simulate(LONG_MEMORY[name], seed=9, device=device, **setting)
    assert probability(found, at_rest) > FALSE_ALARM


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_adam_in_pure_noise_is_the_fixed_preconditioner_of_the_root(state_dtype, device):
    def make(params):
        return fusedstep.Adam(params, lr=0.03, betas=(0.0, 0.999), state_dtype=state_dtype)

    setting = {"batch_size": 1, "steps": [600], "dim": 10**6, "bins": 25, "runs": RUNS}
    found = simulate(make, seed=10, device=device, **setting)
    h = found.curvatures[found.curvatures < 3e-3]
    assert len(h) == 14
    one = np.ones(1)
    expected = [
        published.losses("sgd", x, 2 / x * one, 1, 0.03, 0.0, 600, power=0.5)[-1]
        for x in np.split(h, len(h))
    ]
    assert min(expected) < 0.6 < 1.4 < max(expected)  # some are still falling, some are noise
    assert probability(found, np.array(expected)) > FALSE_ALARM


def test_what_eight_bits_lose_where_the_moments_of_a_block_differ_by_a_million():
    # The same noise for both, so that the error of the ratio is far below that of the moments.
    setting = {"batch_size": 1, "steps": [600], "dim": 10**6, "bins": 25, "runs": 2048}
    whole, coded = (
        simulate(
            lambda p, s=state_dtype: fusedstep.Adam(p, 0.03, betas=(0.0, 0.999), state_dtype=s),
            seed=10,
            **setting,
        )
        for state_dtype in (None, "int8")
    )
    ratio, h = coded.second_moments[-1] / whole.second_moments[-1], whole.curvatures
    assert abs(ratio[h > 1e-4] - 1).max() < 0.03
    assert abs(ratio - 1).max() < 0.2


# --- bins, seeds, counts --------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [100, 7, None])
def test_a_bin_stands_for_all_its_coordinates(bins):
    setting = {"batch_size": 8, "steps": [0, 1, 30], "dim": 1000, "bins": bins}
    found = simulate(sgd(lr=0.5), runs=2048, seed=11, **setting)
    expected = loss_curve("sgd", lr=0.5, **setting)
    assert (abs(found.losses - expected) < 4 * found.standard_errors).all()
    assert (found.standard_errors < 0.02 * expected).all()
    drawn_once = loss_curve("sgd", lr=0.5, **(setting | {"dim": len(found.curvatures)}))
    if bins is not None:
        assert (abs(found.losses - drawn_once) > 8 * found.standard_errors).all()


def test_the_standard_error_is_that_of_repeated_simulations():
    setting = {"batch_size": 4, "steps": [20], "dim": 100, "bins": 10, "runs": 32}
    found = [simulate(sgd(lr=0.5), seed=seed, **setting) for seed in range(200)]
    losses = np.array([one.losses[0] for one in found])
    variance = np.mean([one.standard_errors[0] ** 2 for one in found])
    assert losses.var(ddof=1) == pytest.approx(variance, rel=0.4)  # 4 standard deviations


def test_one_seed_is_one_noise_for_every_optimizer():
    setting = {"batch_size": 4, "steps": 20, "dim": 50, "bins": 5, "runs": 16}
    ours = simulate(sgd(lr=0.5, momentum=0.5), seed=12, **setting)
    again = simulate(sgd(lr=0.5, momentum=0.5), seed=12, **setting)
    theirs = simulate(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.5), seed=12, **setting)
    other = simulate(sgd(lr=0.5, momentum=0.5), seed=13, **setting)
    np.testing.assert_array_equal(ours.second_moments, again.second_moments)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5)
    assert abs(ours.losses / other.losses - 1).max() > 1e-2
    assert ours.steps.tolist() == list(range(21))
    assert ours.second_moments.shape == (21, len(ours.curvatures))
    weight = make_model("test", batch_size=4, power=0, dim=50, bins=5).weight
    np.testing.assert_allclose(ours.second_moments @ weight, ours.losses, rtol=1e-12)


def test_no_noise():
    setting = {"batch_size": math.inf, "steps": [7], "dim": 5, "bins": None, "runs": 4}
    start, found = (
        simulate(sgd(lr=0.5), dtype=torch.float64, **(setting | {"steps": [steps]}))
        for steps in (0, 7)
    )
    shrunk = start.second_moments * (1 - 0.5 * start.curvatures) ** 14
    np.testing.assert_allclose(found.second_moments, shrunk, rtol=1e-12)


# --- refusals -------------------------------------------------------------------------------------


def fixed(optimizer):
    return lambda params: optimizer


@pytest.mark.parametrize(
    ("changes", "argument", "must", "got", "kind"),
    [
        ({"batch_size": 0.5}, "batch_size", "be at least 1", "0.5", ValueError),
        ({"steps": [3, 2]}, "steps[1]", "be at least 4", "2", ValueError),
        ({"runs": 1}, "runs", "be at least 2", "1", ValueError),
        ({"average": 1}, "average", "be True or False", "1", TypeError),
        ({"dim": 0}, "dim", "be at least 1", "0", ValueError),
        ({"bins": 1}, "bins", "be at least 2", "1", ValueError),
        ({"seed": -1}, "seed", "be at least 0 .*", "-1", ValueError),
        ({"dtype": torch.int32}, "dtype", "be a floating-.*", "torch.int32", TypeError),
        ({"device": "meta"}, "device", "be a CPU or a CUDA device", "meta", ValueError),
        ({"dtype": "float32"}, "dtype", "be a floating-.*", "float32", TypeError),
    ],
)
def test_arguments(changes, argument, must, got, kind):
    arguments = {"batch_size": 4, "steps": 3, "dim": 10, "bins": None} | changes
    with refuses("simulate", argument, must, got, kind):
        simulate(sgd(lr=0.1), **arguments)


@pytest.mark.parametrize(
    ("make", "must", "got", "kind"),
    [
        (3, "be callable", "int", TypeError),
        (lambda params: params, "return a torch.optim.Optimizer", "list", TypeError),
        (
            fixed(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)),
            "return an optimizer of its argument",
            "another",
            ValueError,
        ),
        (sgd(lr=0.1, max_norm=1.0), "leave max_norm None: .*", "1.0", ValueError),
        (fusedstep.Muon, "return an element-wise optimizer", "Muon", TypeError),
        (torch.optim.LBFGS, "return an element-wise optimizer", "LBFGS", TypeError),
        (
            sgd(lr=200.0),
            "make an optimizer whose loss stays finite",
            "(nan|inf) after 100 steps",
            ValueError,
        ),
    ],
)
def test_optimizers(make, must, got, kind):
    with refuses("simulate", "make_optimizer", must, got, kind):
        simulate(make, batch_size=4, steps=[0, 100], dim=10, bins=None, runs=8)


def test_an_average_that_nobody_keeps():
    must = "set ema_decay where average=True"
    for make in (sgd(lr=0.1), torch.optim.SGD):
        with refuses("simulate", "make_optimizer", must, "SGD", ValueError):
            simulate(make, batch_size=4, steps=3, dim=10, bins=None, average=True)
