"""The study of the last layer: its model, its temperature, its facts, its outcome."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F


@pytest.fixture(scope="module")
def data(program, settings):
    """Tokens of which each has one of three successors."""
    from lm.corpus import Corpus

    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randint(1, 4, (3000,), generator=generator).cumsum(0) % 50).int()
    corpus = Corpus(training=tokens[:2400], validation=tokens[2400:], tokenizer=None)
    return program.Data.of(corpus, settings)


@pytest.fixture(scope="module")
def mixer(program, settings):
    from head.mixer import make_mixer

    return make_mixer(settings)


@pytest.fixture(scope="module")
def found(program, data, settings):
    with program.Stages(program.Console(file=io.StringIO())) as stages:
        return program.study.study(data, settings, stages)


def test_the_mixer_looks_back_only(mixer, settings) -> None:
    tokens = torch.arange(settings.context)[None]
    later = tokens.clone()
    later[0, 5] = 40
    before, after = mixer.hidden(tokens), mixer.hidden(later)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=0)
    assert (before[:, 5:] != after[:, 5:]).any(2).all()


@pytest.mark.parametrize("name", ["embedding", "mixing", "head"])
def test_the_mixer_is_linear_in_each_of_its_parts(mixer, name) -> None:
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    parts = {key: value.double() for key, value in mixer.named_parameters()}
    other = torch.randn(parts[name].shape, dtype=torch.float64)

    def logits(part: torch.Tensor) -> torch.Tensor:
        changed = {**parts, name: part}
        hidden = torch.func.functional_call(mixer, changed, (tokens, tokens))
        assert hidden.shape == ()
        mixing = changed["mixing"].tril()
        return mixing @ F.embedding(tokens, changed["embedding"]) @ changed["head"].T

    mixture = logits(2 * parts[name] - 3 * other)
    torch.testing.assert_close(mixture, 2 * logits(parts[name]) - 3 * logits(other))


def test_the_trivial_loss_is_that_of_all_weights_zero(found, data, mixer, settings) -> None:
    from head.settings import SCALE

    from fusedstep.lm_head import LeastSquares

    hidden, tokens = data.held_out.hidden(mixer.hidden)
    sums = LeastSquares(settings.width, settings.vocabulary, scale=SCALE)
    sums.update(hidden, tokens)
    zero = torch.zeros(settings.vocabulary, settings.width)
    assert float(sums.mse(zero)) == pytest.approx(settings.trivial_mse, rel=1e-12)
    assert replace(settings, vocabulary=4096).trivial_mse == pytest.approx(244.140625)
    assert found["trivial_mse"] == 1000**2 / 50


@pytest.mark.parametrize("size", [1e-2, 1.0, 300.0])
def test_the_temperature_is_the_best_of_all(program, data, mixer, size) -> None:
    """For logits that mean something, of any size: a fine grid finds nothing better."""
    from head import temperature
    from head.data import evaluate

    hidden, tokens = data.training.hidden(mixer.hidden)
    head = size * torch.linalg.lstsq(hidden, F.one_hot(tokens, 50).float()).solution.T
    fitted = temperature.fit(data.training, mixer.hidden, head, 7)
    assert fitted.factor > 0
    at = [evaluate(data.training, mixer.hidden, fitted.factor * f * head, 7)
          for f in (0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0)]  # fmt: skip
    assert min(at) == at[3]
    assert fitted.loss == pytest.approx(at[3], rel=1e-5)


def test_logits_that_mislead_have_the_temperature_zero(program, data, mixer) -> None:
    from head import temperature

    hidden, tokens = data.training.hidden(mixer.hidden)
    head = torch.linalg.lstsq(hidden, F.one_hot(tokens, 50).float()).solution.T
    assert temperature.fit(data.training, mixer.hidden, -head, 7).factor == 0


def test_facts_are_those_of_the_jacobian_written_out(data, mixer) -> None:
    from head.facts import facts_of

    part = data.training.rows(torch.arange(2))
    hidden, tokens = part.hidden(mixer.hidden)
    weight = mixer.head.detach().double()
    hidden = hidden.double()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(hidden @ weight.T, tokens, reduction="none")

    jacobian = torch.func.jacrev(loss)(weight).flatten(1)
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    mean = jacobian.mean(0).view_as(weight)
    facts = facts_of(weight, hidden, tokens)
    assert facts["kernel_top"] == pytest.approx(float(torch.linalg.eigvalsh(unit @ unit.T)[-1]))
    assert facts["kernel_rank"] == int(torch.linalg.matrix_rank(unit))
    assert facts["gradient_rank"] == int(torch.linalg.matrix_rank(mean))
    assert facts["gradient_norm"] == pytest.approx(float(mean.norm()))

    _, image = torch.func.jvp(torch.func.grad(lambda w: loss(w).mean()), (weight,), (mean,))
    p = (hidden @ weight.T).softmax(1)
    outputs = hidden @ mean.T
    bound = (outputs - outputs.mean(1, keepdim=True)).square().sum() / 2 / len(hidden)
    blocks = (p * (1 - p) * outputs.square()).sum() / len(hidden)
    curvature = (mean * image).sum()
    assert facts["bound_ratio"] == pytest.approx(float(bound / curvature))
    assert facts["blocks_ratio"] == pytest.approx(float(curvature / blocks))


def test_the_textbook_formula_fails_where_tokens_repeat(mixer, settings) -> None:
    from head.data import Windows
    from head.normal import compare

    tokens = torch.tensor([[1, 2, 1, 2, 3, 3, 1, 2]], dtype=torch.int32)
    found = compare(Windows(tokens, tokens + 1), mixer.hidden, mixer.head.detach(), settings)
    assert (found["rank"], found["distinct"], found["tokens"], found["width"]) == (3, 3, 8, 10)
    rows = found["losses"]
    ours = rows["fusedstep.pinv(X) @ y, float32"]["mse"]
    assert ours == pytest.approx(rows["torch.linalg.pinv(X) @ y, float32"]["mse"], rel=1e-3)
    assert ours < found["before"]
    naive = rows["inverse(X.T @ X) @ X.T @ y, float32"]
    assert naive["error"] or naive["mse"] is None or naive["mse"] > 1.1 * ours


def test_least_squares_beat_every_other_head_on_their_own_tokens(found, settings) -> None:
    for key in ("least_squares", "least_squares_untrained"):
        assert found[key]["mse"] < min(found[key]["mse_before"], found["trivial_mse"])
    assert found["formulas"][1]["rank"] == settings.width


def test_adamw_starts_from_the_fresh_layer_and_learns(found, settings) -> None:
    for key in ("adamw_head", "adamw_whole"):
        points = found[key]
        assert [point["step"] for point in points] == [0, 1, 2, 5, 10, 20]
        assert points[-1]["held_out_loss"] < points[0]["held_out_loss"]
        assert points[0]["seconds"] == 0 < points[1]["seconds"]


def test_every_variant_has_its_losses_and_its_reason(found) -> None:
    variants = found["newton"]["variants"]
    assert len(variants) == 12
    for outcome in variants.values():
        assert len(outcome["losses"]) == len(outcome["seconds"]) <= 4
        assert outcome["reason"].count("\n") == 0 < len(outcome["reason"])
    for name in ("Newton-CG", "Böhning's bound", "block diagonal"):
        assert variants[name]["rises"] == 0
        assert variants[name]["losses"][-1] < found["newton"]["before"]
    rank = found["newton"]["facts"]["gradient_rank"]
    assert f"moves {rank} times" in variants["full, as published"]["reason"]


def test_names_beside_the_lines_do_not_meet(program) -> None:
    from head.labels import SPACING, TOP, spread

    assert spread([0.2, 0.5]) == [0.2, 0.5]
    crowd = spread([-3.0, 0.0, 0.01, 0.5, 0.5, 0.97, 7.0])
    assert all(b - a >= SPACING - 1e-12 for a, b in itertools.pairwise(crowd))
    assert min(crowd) >= 0
    assert max(crowd) <= TOP + 1e-12
