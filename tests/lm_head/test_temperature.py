"""The fit of a temperature: against bisection in float64, at its two ends, and what it refuses."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusedstep.lm_head import fit_temperature, least_squares, problem, temperature
from tests.support.last_layer import Regression, regression
from tests.support.reads import Largest
from tests.support.tensors import assert_same_bits, name_of

F64 = torch.float64


def fitted(count: int = 400, scale: float = 1.0, dtype: torch.dtype = F64) -> Regression:
    """A last layer by least squares, and other tokens than those that it was fitted to."""
    _, hidden, tokens = regression(2 * count, width=6, vocabulary=20, seed=3)
    weight = least_squares(hidden[:count], tokens[:count], 20, scale=scale)
    return Regression(weight.to(dtype), hidden[count:].to(dtype), tokens[count:])


def truth(weight: Tensor, hidden: Tensor, tokens: Tensor) -> tuple[float, float]:
    """The root of the slope by bisection, and the loss there, from all logits in float64."""
    logits = hidden.double() @ weight.double().T
    own = logits.gather(1, tokens[:, None]).squeeze(1)

    def slope(t: float) -> float:
        return float(((t * logits).softmax(1) * logits).sum(1).sub(own).mean())

    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high, float(cross_entropy(high * logits, tokens))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1000.0])
def test_the_minimum_is_that_of_bisection(scale, dtype, device):
    weight, hidden, tokens = fitted(scale=scale, dtype=dtype)
    expected, least = truth(weight, hidden, tokens)
    there = (t.to(device) for t in (hidden, tokens, weight))
    value, loss = fit_temperature(*there, scale=scale)
    assert value == pytest.approx(expected, rel=1e-9 if dtype == F64 else 1e-4)
    assert loss == pytest.approx(least, rel=1e-12 if dtype == F64 else 1e-6)
    assert {type(value), type(loss)} == {float}


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
def test_so_it_is_for_weights_of_another_origin(spread):
    weight, hidden, tokens = regression(300, width=6, vocabulary=9)
    weight = spread * (weight + torch.eye(9, dtype=F64)[tokens].T @ hidden / 300)
    expected, least = truth(weight, hidden, tokens)
    value, loss = fit_temperature(hidden, tokens, weight)
    assert value == pytest.approx(expected, rel=1e-9)
    assert loss == pytest.approx(least, rel=1e-12)


def test_the_size_of_scale_only_sets_the_start(monkeypatch):
    weight, hidden, tokens = fitted()
    expected, _ = truth(weight, hidden, tokens)
    passes = []
    honest = temperature._derivatives
    monkeypatch.setattr(temperature, "_derivatives", lambda *a: passes.append(a) or honest(*a))
    for scale, most in ((1.0, 12), (30.0, 12), (1e-3, 14), (1e9, 20), (1e-300, 40)):
        passes.clear()
        value = fit_temperature(hidden, tokens, weight, scale=scale).value
        assert value == pytest.approx(expected, rel=1e-9)
        assert len(passes) <= most


def test_a_negative_scale_has_a_negative_factor():
    weight, hidden, tokens = fitted(scale=-5.0)
    mirrored = fit_temperature(hidden, tokens, -weight, scale=5.0)
    value, loss = fit_temperature(hidden, tokens, weight, scale=-5.0)
    assert (value, loss) == (-mirrored.value, mirrored.loss)
    assert value < 0


def test_logits_that_mislead_or_say_nothing_have_the_factor_zero():
    weight, hidden, tokens = fitted()
    for misleading in (-weight, 0 * weight, weight[:1].expand(20, 6)):
        value, loss = fit_temperature(hidden, tokens, misleading)
        assert value == 0
        assert loss == pytest.approx(math.log(20))
    assert fit_temperature(hidden, 0 * tokens, weight[:1]) == (0.0, 0.0)  # one token is no choice


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=name_of)
def test_tokens_that_have_no_rival_ahead_give_a_finite_factor(dtype):
    hidden = torch.eye(3, dtype=dtype)
    weight = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 0.5], [0, 0, 0]], dtype=dtype)
    value, loss = fit_temperature(hidden, torch.arange(3), weight)
    assert 0 < value < math.inf
    assert loss == 0
    chances = (value * hidden.double() @ weight.double().T).softmax(1).diagonal()
    assert (chances >= 1 - 2.0**-52).all()
    tied = torch.cat([weight, weight[:1]])  # a rival that is never behind, for one token of three
    assert fit_temperature(hidden, torch.arange(3), tied).loss == pytest.approx(math.log(2) / 3)
    tiny = torch.finfo(dtype).tiny * weight
    assert math.isfinite(fit_temperature(hidden, torch.arange(3), tiny).value)


def test_a_rival_just_ahead_gives_a_large_factor():
    hidden = torch.eye(2, dtype=F64)
    weight = torch.tensor([[1.0, 1e-3], [0.0, 0.0]], dtype=F64)
    tokens = torch.tensor([0, 1])
    expected = truth(weight, hidden, tokens)
    assert fit_temperature(hidden, tokens, weight) == pytest.approx(expected, rel=1e-9)


def test_any_blocks_and_batches_give_the_same_result(monkeypatch):
    weight, hidden, tokens = fitted()
    whole = fit_temperature(hidden, tokens, weight)
    batch = fit_temperature(hidden.view(4, 100, 6), tokens.view(4, 100), weight)
    assert batch == whole
    monkeypatch.setattr(problem, "CHUNK_ELEMENTS", 20 * 7)
    with Largest() as largest:
        blocks = fit_temperature(hidden, tokens, weight)
    assert largest.elements <= hidden.numel() < 400 * 20
    assert blocks == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_half_precisions_are_widened(dtype):
    weight, hidden, tokens = fitted(dtype=dtype)
    expected = fit_temperature(hidden.float(), tokens, weight.float())
    assert fit_temperature(hidden, tokens, weight) == expected


def test_neither_autograd_nor_autocast_plays_a_part_and_nothing_given_is_written():
    given = fitted(dtype=torch.float32)
    weight = torch.nn.Parameter(given.weight.clone())
    expected = fit_temperature(given.hidden, given.tokens, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert fit_temperature(given.hidden, given.tokens, weight) == expected
    assert_same_bits(weight, given.weight)


REFUSED = {
    "scale 0": ({"scale": 0}, "scale must be finite and not 0, got 0.0"),
    "scale NaN": ({"scale": math.nan}, "scale must be finite and not 0, got nan"),
    "scale as text": ({"scale": "1"}, "scale must be a number, got str"),
    "weight of another width": ({"weight": torch.ones(9, 4)}, "hidden must be [N, 4] or"),
    "flat weight": ({"weight": torch.ones(9)}, "weight must have the shape [V, d]"),
    "NaN hidden": ({"hidden": torch.full((12, 5), math.nan)}, "hidden[0, 0] must be finite"),
    "token too large": ({"tokens": torch.full((12,), 9)}, "tokens must be at least 0 and below 9"),
    "no tokens": (
        {"hidden": torch.ones(0, 5), "tokens": torch.ones(0, dtype=torch.int64)},
        "tokens must have at least one element, got (0,)",
    ),
    "logits beyond float32": (
        {"hidden": torch.full((12, 5), 1e30), "weight": torch.full((9, 5), 1e30)},
        "weight must give finite logits with hidden, got nan",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(case):
    changed, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=re.escape(f"fit_temperature: {message}")):
        fit_temperature(**{**regression()._asdict(), **changed})
