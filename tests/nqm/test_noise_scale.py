"""The noise scale: its estimators, their errors, a run's accumulated micro-batches, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fusedstep
from fusedstep.nqm import NoiseScale
from tests.support.refusals import refuses

SMALL, BIG = 2, 32
PAIRS = [(3.0, 1.1), (2.5, 0.9), (3.4, 1.2), (2.9, 1.3), (3.1, 0.8)]


def filled(pairs=PAIRS, **options) -> NoiseScale:
    scale = NoiseScale(SMALL, BIG, **options)
    for small, big in pairs:
        scale.update(small, big)
    return scale


def norms(rng: np.random.Generator, updates: int, dim: int, noise: float):
    """Of the first SMALL and of all BIG examples, whose gradients are N(1 / sqrt(dim), noise)."""
    gradients = dim**-0.5 + noise * rng.standard_normal((updates, BIG, dim))
    small, big = gradients[:, :SMALL].mean(1), gradients.mean(1)
    return np.linalg.norm(small, axis=1), np.linalg.norm(big, axis=1)


# --- the estimates --------------------------------------------------------------------------------


def test_the_estimators_of_the_paper():
    scale = filled()
    small, big = np.square(PAIRS).T
    signal = ((BIG * big - SMALL * small) / (BIG - SMALL)).mean()  # appendix A.1
    noise = ((small - big) / (1 / SMALL - 1 / BIG)).mean()
    assert scale.signal == pytest.approx(signal, rel=1e-12)
    assert scale.noise == pytest.approx(noise, rel=1e-12)
    assert scale.value == pytest.approx(noise / signal, rel=1e-12)


def test_the_error_of_a_ratio_of_means():
    # The residuals of a regression through the origin, as survey statistics writes it.
    scale = filled()
    small, big = np.square(PAIRS).T
    signal = (BIG * big - SMALL * small) / (BIG - SMALL)
    noise = (small - big) / (1 / SMALL - 1 / BIG)
    rest = noise - scale.value * signal
    expected = rest.std(ddof=1) / math.sqrt(len(PAIRS)) / signal.mean()
    assert scale.standard_error == pytest.approx(expected, rel=1e-10)


def test_it_is_right_and_so_is_its_error():
    # 300 runs of 40 updates: the means of the parts are without bias, the ratio nearly so, and it
    # scatters as much as the standard error says. False alarm: 4 standard deviations each.
    rng, dim, noise, runs = np.random.default_rng(0), 30, 0.5, 300
    found = []
    for _ in range(runs):
        scale = filled(zip(*norms(rng, 40, dim, noise), strict=True))
        found.append((scale.signal, scale.noise, scale.value, scale.standard_error))
    signal, trace, value, error = np.array(found).T
    exact = dim * noise**2
    assert abs(signal.mean() - 1) < 4 * signal.std() / math.sqrt(runs)
    assert abs(trace.mean() - exact) < 4 * trace.std() / math.sqrt(runs)
    assert value.mean() == pytest.approx(exact, rel=0.02)
    assert error.mean() == pytest.approx(value.std(), rel=4 / math.sqrt(2 * runs))
    covered = (abs(value - exact) < 2 * error).mean()
    assert 0.91 < covered < 0.98  # of the normal distribution 0.954, of 40 values a little less


def test_the_mean_of_ratios_would_be_wrong():
    rng = np.random.default_rng(1)
    pairs = list(zip(*norms(rng, 2000, 10, 2.0), strict=True))
    assert filled(pairs).value == pytest.approx(40, rel=0.2)
    ratios = [filled([pair]).value for pair in pairs]
    assert not np.isfinite(ratios).all()  # in a single pair noise hides the gradient


@pytest.mark.parametrize("decay", [0.99, 0.6])
def test_the_average_with_decay(decay):
    scale = filled(decay=decay)
    weights = decay ** np.arange(len(PAIRS))[::-1]
    squares = np.square(PAIRS)
    linear = np.array([[-SMALL, BIG], [SMALL * BIG, -SMALL * BIG]]) / (BIG - SMALL)
    estimates = squares @ linear.T
    signal, noise = np.average(estimates, axis=0, weights=weights)
    assert (scale.signal, scale.noise) == pytest.approx((signal, noise), rel=1e-12)
    # NumPy's reliability weights: an unbiased covariance; its mean has sum w^2 / (sum w)^2 of it.
    covariance = np.cov(estimates.T, aweights=weights) * (weights**2).sum() / weights.sum() ** 2
    slope = np.array([-noise / signal**2, 1 / signal])
    assert scale.standard_error == pytest.approx(math.sqrt(slope @ covariance @ slope), rel=1e-10)


def test_the_average_with_decay_follows_a_change_without_the_bias_of_its_start():
    rng = np.random.default_rng(2)
    plain, running = NoiseScale(SMALL, BIG), NoiseScale(SMALL, BIG, decay=0.9)
    first = True
    for noise in (0.2, 0.6):
        for small, big in zip(*norms(rng, 100, 50, noise), strict=True):
            plain.update(small, big)
            running.update(small, big)
            if first:
                assert running.value == plain.value  # a single update has all of the weight
                first = False
    assert running.value == pytest.approx(50 * 0.6**2, rel=0.3)
    assert plain.value < 0.75 * running.value


def test_many_updates_keep_the_digits_of_a_small_scatter():
    pairs = [(1e6 + k % 2, 9e5 + k % 3) for k in range(300)]
    small, big = np.square(pairs).T
    signal, noise = (BIG * big - SMALL * small) / (BIG - SMALL), (small - big) * 32 / 15
    scale = filled(pairs)
    rest = noise - noise.mean() / signal.mean() * signal
    expected = rest.std(ddof=1) / math.sqrt(len(pairs)) / signal.mean()
    assert scale.standard_error == pytest.approx(expected, rel=1e-6)


# --- at the edges ---------------------------------------------------------------------------------


def test_before_there_is_enough():
    scale = NoiseScale(SMALL, BIG)
    assert math.isnan(scale.value)
    assert math.isnan(scale.signal)
    assert math.isnan(scale.noise)
    assert scale.standard_error == math.inf
    scale.update(3.0, 1.0)
    assert math.isfinite(scale.value)
    assert scale.standard_error == math.inf
    scale.update(3.0, 1.0)
    assert scale.standard_error == 0


def test_estimates_below_zero():
    drowned = filled([(4.0, 0.5), (4.2, 0.4)])  # more noise than so large a batch can have
    assert drowned.signal < 0
    assert (drowned.value, drowned.standard_error) == (math.inf, math.inf)
    calm = filled([(1.0, 1.1), (1.0, 1.2)])
    assert calm.noise < 0
    assert calm.value == 0
    assert calm.recommended_batch() == SMALL


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 1])
def test_a_step_whose_norm_is_not_finite_counts_for_nothing(bad, place):
    pair = [3.0, 1.0]
    pair[place] = bad
    with_it = filled([*PAIRS[:2], pair, *PAIRS[2:]], decay=0.8)
    assert with_it.value == filled(decay=0.8).value
    assert with_it.standard_error == filled(decay=0.8).standard_error


@pytest.mark.parametrize(("noise", "batch"), [(11.7, 12), (12.9, 12), (130.1, 130), (0.3, 2)])
def test_the_recommended_batch_is_the_nearest_number_of_small_ones(noise, batch):
    small, big = (math.sqrt(1 + noise / size) for size in (SMALL, BIG))
    scale = filled([(small, big)])
    assert scale.value == pytest.approx(noise)
    assert scale.recommended_batch() == batch


@pytest.mark.parametrize("pairs", [[], [(4.0, 0.5)]])
def test_no_batch_is_recommended_without_a_noise_scale(pairs):
    with pytest.raises(
        RuntimeError, match="recommended_batch: the noise scale must be finite, got"
    ):
        filled(pairs).recommended_batch()


# --- in a run -------------------------------------------------------------------------------------


def test_accumulated_micro_batches_of_a_real_optimizer(device):
    # A rate of 0 keeps the model, so that |G|^2 and tr(Sigma) are those of the whole data.
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    model.to(device)
    inputs = torch.randn(64, 6, device=device)
    targets = inputs[:, :1] ** 2 + torch.randn(64, 1, device=device)
    params = list(model.parameters())

    def loss_of(x, y):
        return (model(x) - y).square().mean()

    each = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss_of(x, y), params)])
            for x, y in zip(inputs.split(1), targets.split(1), strict=True)
        ]
    ).double()
    signal, noise = each.mean(0).square().sum(), each.var(0, correction=0).sum()

    opt = fusedstep.SGD(params, lr=0.0, max_norm=1e9)
    micro_batches, size = 8, 4
    scale = NoiseScale(size, size * micro_batches)
    for _ in range(150):
        for i in range(micro_batches):
            at = torch.randint(64, (size,), device=device)
            (loss_of(inputs[at], targets[at]) / micro_batches).backward()
            if i == 0:
                first = fusedstep.get_total_norm([p.grad for p in params]) * micro_batches
        opt.step()
        opt.zero_grad()
        scale.update(first, opt.grad_norm)
    assert scale.value == pytest.approx(float(noise / signal), abs=4 * scale.standard_error)
    assert scale.standard_error < 0.2 * scale.value


class Waits(TorchDispatchMode):
    """Counts what reads a tensor's value on the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.nonzero.default,
        ):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_an_update_reads_no_tensor():
    scale, norm = filled(), torch.tensor(2.0)
    with Waits() as waits:
        scale.update(norm, norm / 2)
    assert waits.found == []
    with Waits() as waits:
        float(norm)
    assert waits.found  # such a read would have been seen


def test_tensors_of_any_dtype_are_numbers(device):
    tensors = NoiseScale(SMALL, BIG)
    for small, big in PAIRS:
        norm = torch.tensor([small], dtype=torch.float64, device=device)
        tensors.update(norm, torch.tensor(big, dtype=torch.float64, requires_grad=True))
    assert tensors.value == pytest.approx(filled().value, rel=1e-12)
    assert tensors.standard_error == pytest.approx(filled().standard_error, rel=1e-12)


def test_a_checkpoint_continues(tmp_path):
    before = filled(PAIRS[:3], decay=0.9)
    torch.save(before.state_dict(), tmp_path / "scale.pt")
    after = filled([(9.0, 9.0)], decay=0.9)
    after.load_state_dict(torch.load(tmp_path / "scale.pt"))
    kept = before.value
    for small, big in PAIRS[3:]:
        after.update(small, big)
    assert before.value == kept
    assert after.value == filled(decay=0.9).value
    assert after.standard_error == filled(decay=0.9).standard_error


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "argument", "must", "got", "kind"),
    [
        ((8, 8), "big_batch", r"be above small_batch \(8\): one batch size .*", "8", ValueError),
        ((8, 4), "big_batch", r"be above small_batch \(8\): one batch size .*", "4", ValueError),
        ((0, 4), "small_batch", "be at least 1", "0", ValueError),
        ((1.0, 4), "small_batch", "be an int", "float 1.0", TypeError),
        ((1, "4"), "big_batch", "be an int", "str '4'", TypeError),
        ((1, 4, 0.0), "decay", "be above 0 and at most 1", "0.0", ValueError),
        ((1, 4, 1.1), "decay", "be above 0 and at most 1", "1.1", ValueError),
        ((1, 4, math.nan), "decay", "be above 0 and at most 1", "nan", ValueError),
        ((1, 4, None), "decay", "be a number", "NoneType", TypeError),
    ],
)
def test_construction(arguments, argument, must, got, kind):
    small, big, *decay = arguments
    with refuses("NoiseScale", argument, must, got, kind):
        NoiseScale(small, big, **({"decay": decay[0]} if decay else {}))


@pytest.mark.parametrize(
    ("pair", "argument", "must", "got", "kind"),
    [
        ((-1.0, 1.0), "small_norm", "be 0 or more", "-1.0", ValueError),
        ((1.0, -2), "big_norm", "be 0 or more", "-2", ValueError),
        ((None, 1.0), "small_norm", "be a number", "NoneType", TypeError),
        ((1.0, True), "big_norm", "be a number", "bool", TypeError),
        ((torch.ones(2), 1.0), "small_norm", "have one element", r"\(2,\)", ValueError),
    ],
)
def test_updates(pair, argument, must, got, kind):
    scale = filled()
    with refuses("update", argument, must, got, kind):
        scale.update(*pair)
    assert scale.value == filled().value


@pytest.mark.parametrize(
    ("changes", "argument", "must", "got", "kind"),
    [
        ({"big_batch": 64}, "big_batch", "be 32", "64", ValueError),
        ({"small_batch": None}, "small_batch", "be 2", "None", ValueError),
        ({"mean": torch.zeros(3)}, "mean", r"have shape \(2,\)", r"\(3,\)", ValueError),
        ({"scatter": None}, "scatter", "be a tensor", "NoneType", TypeError),
    ],
)
def test_checkpoints(changes, argument, must, got, kind):
    scale = filled()
    with refuses("load_state_dict", argument, must, got, kind):
        scale.load_state_dict(filled([(9.0, 8.0)]).state_dict() | changes)
    assert scale.value == filled().value
