"""The study of the last layer: its model, its facts, its outcome, and its command line."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")
pytest.importorskip("rich", reason="needs the bench extra: rich")
pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")

from rich.console import Console

from bench import lm_head, train_lm
from bench.drawing import SPACING, TOP, spread
from bench.record import RESULTS
from bench.studies.language_model.corpus import Corpus, Windows
from bench.studies.last_layer import closed_form, gpt
from bench.studies.last_layer.closed_form import compare
from bench.studies.last_layer.newton import facts_of
from bench.studies.last_layer.problem import (
    SCALE,
    Data,
    Settings,
    hidden_states,
    make_mixer,
)
from bench.studies.last_layer.study import study
from bench.studies.stages import Stages
from fusedstep.lm_head import LeastSquares

SETTINGS = Settings(
    vocabulary=50,
    context=8,
    width=10,
    steps=20,
    batch=4,
    held_out=12,
    chunk=5,
    newton_tokens=32,
    newton_seconds=60.0,
    newton_iterations=4,
)


@pytest.fixture(scope="module")
def data():
    """Tokens of which each has one of three successors."""
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randint(1, 4, (3000,), generator=generator).cumsum(0) % 50).int()
    corpus = Corpus(training=tokens[:2400], validation=tokens[2400:], tokenizer=None)
    return Data.of(corpus, SETTINGS)


@pytest.fixture(scope="module")
def mixer():
    return make_mixer(SETTINGS)


@pytest.fixture(scope="module")
def found(data):
    with Stages(Console(file=io.StringIO())) as stages:
        return study(data, SETTINGS, stages)


def test_the_mixer_looks_back_only(mixer) -> None:
    tokens = torch.arange(SETTINGS.context)[None]
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


def test_the_trivial_loss_is_that_of_all_weights_zero(found, data, mixer) -> None:
    hidden, tokens = hidden_states(data.held_out, mixer.hidden)
    sums = LeastSquares(SETTINGS.width, SETTINGS.vocabulary, scale=SCALE)
    sums.update(hidden, tokens)
    zero = torch.zeros(SETTINGS.vocabulary, SETTINGS.width)
    assert float(sums.mse(zero)) == pytest.approx(SETTINGS.trivial_mse, rel=1e-12)
    assert replace(SETTINGS, vocabulary=4096).trivial_mse == pytest.approx(244.140625)
    assert found.trivial_mse == 1000**2 / 50


def test_facts_are_those_of_the_jacobian_written_out(data, mixer) -> None:
    part = data.training.rows(torch.arange(2))
    hidden, tokens = hidden_states(part, mixer.hidden)
    weight = mixer.head.detach().double()
    hidden = hidden.double()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(hidden @ weight.T, tokens, reduction="none")

    jacobian = torch.func.jacrev(loss)(weight).flatten(1)
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    mean = jacobian.mean(0).view_as(weight)
    facts = facts_of(weight, hidden, tokens)
    assert facts.kernel_top == pytest.approx(float(torch.linalg.eigvalsh(unit @ unit.T)[-1]))
    assert facts.kernel_rank == int(torch.linalg.matrix_rank(unit))
    assert facts.gradient_rank == int(torch.linalg.matrix_rank(mean))
    assert facts.gradient_norm == pytest.approx(float(mean.norm()))

    _, image = torch.func.jvp(torch.func.grad(lambda w: loss(w).mean()), (weight,), (mean,))
    p = (hidden @ weight.T).softmax(1)
    outputs = hidden @ mean.T
    bound = (outputs - outputs.mean(1, keepdim=True)).square().sum() / 2 / len(hidden)
    blocks = (p * (1 - p) * outputs.square()).sum() / len(hidden)
    curvature = (mean * image).sum()
    assert facts.bound_ratio == pytest.approx(float(bound / curvature))
    assert facts.blocks_ratio == pytest.approx(float(curvature / blocks))


def test_the_textbook_formula_fails_where_tokens_repeat(mixer) -> None:
    tokens = torch.tensor([[1, 2, 1, 2, 3, 3, 1, 2]], dtype=torch.int32)
    found = compare(Windows(tokens, tokens + 1), mixer.hidden, mixer.head.detach(), SETTINGS)
    assert (found.rank, found.distinct, found.tokens, found.width) == (3, 3, 8, 10)
    rows = found.losses
    ours = rows["fusedstep.pinv(X) @ y, float32"].mse
    assert ours == pytest.approx(rows["torch.linalg.pinv(X) @ y, float32"].mse, rel=1e-3)
    assert ours < found.before
    naive = rows["inverse(X.T @ X) @ X.T @ y, float32"]
    assert naive.error or naive.mse is None or naive.mse > 1.1 * ours


def test_least_squares_beat_every_other_head_on_their_own_tokens(found) -> None:
    for fit in (found.least_squares, found.least_squares_untrained):
        assert fit.mse < min(fit.mse_before, found.trivial_mse)
    assert found.formulas[1].rank == SETTINGS.width


def test_adamw_starts_from_the_fresh_layer_and_learns(found) -> None:
    for points in (found.adamw_head, found.adamw_whole):
        assert [point.step for point in points] == [0, 1, 2, 5, 10, 20]
        assert points[-1].held_out_loss < points[0].held_out_loss
        assert points[0].seconds == 0 < points[1].seconds


def test_every_variant_has_its_losses_and_its_reason(found) -> None:
    variants = found.newton.variants
    assert len(variants) == 12
    for outcome in variants.values():
        assert len(outcome.losses) == len(outcome.seconds) <= 4
        assert outcome.reason.count("\n") == 0 < len(outcome.reason)
    for name in ("Newton-CG", "Böhning's bound", "block diagonal"):
        assert variants[name].rises == 0
        assert variants[name].losses[-1] < found.newton.before
    rank = found.newton.facts.gradient_rank
    assert f"moves {rank} times" in variants["full, as published"].reason


def test_names_beside_the_lines_do_not_meet() -> None:
    assert spread([0.2, 0.5]) == [0.2, 0.5]
    crowd = spread([-3.0, 0.0, 0.01, 0.5, 0.5, 0.97, 7.0])
    assert all(b - a >= SPACING - 1e-12 for a, b in itertools.pairwise(crowd))
    assert min(crowd) >= 0
    assert max(crowd) <= TOP + 1e-12


@pytest.fixture
def tiny(monkeypatch):
    """Options for which the program takes a second, with a vocabulary that has every byte."""
    monkeypatch.setitem(lm_head.USUAL, "mixer", replace(SETTINGS, vocabulary=300))
    return ["--steps=2", "--tokens=2048", "--newton-tokens=16", "--newton-iterations=1"]


def test_the_program_leaves_tables_a_figure_and_its_numbers(tiny, text, capsys) -> None:
    assert lm_head.main([*tiny, "--data", str(text), "--out", "out"]) == 0
    shown = capsys.readouterr().out
    for words in ("3333.33", "fusedstep.pinv", "AdamW, last layer alone", "full, as published"):
        assert words in shown
    assert sorted(os.listdir("out")) == ["lm_head.json", "lm_head.png"]
    assert Path("out/lm_head.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads(Path("out/lm_head.json").read_text())
    assert kept["settings"]["steps"] == 2
    assert kept["results"]["least_squares"]["tokens"] == 2048
    assert {"torch", "commit", "threads", "load"} <= set(kept["machine"])


def test_ctrl_c_stops_after_the_step_at_hand_and_writes_nothing(
    tiny, text, monkeypatch, capsys
) -> None:
    before = signal.getsignal(signal.SIGINT)
    fit = closed_form.fit_temperature

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return fit(*arguments, **options)

    monkeypatch.setattr(closed_form, "fit_temperature", interrupted)
    assert lm_head.main([*tiny, "--data", str(text), "--out", "out"]) == 130
    assert "Stopped; nothing was written." in capsys.readouterr().out
    assert os.listdir("out") == []
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "argument --steps: must be an integer from 1 to 2^31 - 1, got 0"),
        (["--lr", "inf"], "argument --lr: must be a finite number above 0, got inf"),
        (["--newton-seconds", "-1"], "argument --newton-seconds: must be a finite number above 0"),
        (["--model", "rnn"], "argument --model: invalid choice: 'rnn'"),
        (["--newton-steps", "3"], "--newton-steps is for --model gpt, got --model mixer"),
        (["--model=gpt", "--lr=1"], "--lr is for --model mixer, got --model gpt"),
        (["--model=gpt"], "--checkpoint: there is no runs/train_lm/checkpoint.pt; `python -m"),
        (["--model=gpt", "--checkpoint=out/lm_head.json"], "--checkpoint: out/lm_head.json is dam"),
        (
            ["--model=gpt", "--checkpoint=other.pt"],
            "--checkpoint: other.pt is damaged or not a che",
        ),
        (["--data", "missing"], "--data must exist, got missing"),
        (["--data", "short.txt"], "--data must hold more text: its training part has "),
        (["--out", "short.txt"], "--out: short.txt cannot be made: File exists"),
    ],
)
def test_bad_input_gives_one_sentence_and_changes_nothing(
    text, capsys, arguments, sentence
) -> None:
    Path("short.txt").write_text("A text that is too short.")
    Path("out").mkdir()
    Path("out/lm_head.json").write_text("of an earlier run")
    torch.save({"format": 1, "settings": {}}, "other.pt")
    assert lm_head.main(["--data", str(text), "--out", "out", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"lm_head: {sentence}")
    assert errors.count("\n") == 1
    assert os.listdir("out") == ["lm_head.json"]
    assert Path("out/lm_head.json").read_text() == "of an earlier run"


@pytest.fixture
def trained(text):
    """The options for the model that bench.train_lm trained for a few steps, kept in runs."""
    arguments = ["--size=tiny", "--device=cpu", "--steps=4", f"--data={text}"]
    assert train_lm.main(arguments) == 0
    return ["--model=gpt", f"--data={text}", "--out=out"]


def test_the_last_layer_of_the_trained_model_is_solved_further(trained, capsys) -> None:
    kept = Path("runs/train_lm/checkpoint.pt").read_bytes()
    assert lm_head.main([*trained, "--tokens=640", "--newton-steps=3"]) == 0
    assert "AdamW left" in capsys.readouterr().out
    found = json.loads(Path("out/lm_head_gpt.json").read_text())["results"]
    losses = [step["loss"] for step in found["steps"]]
    assert found["tokens"] == 640
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    first, last = found["between"][0], found["between"][-1]
    assert first["held_out_loss"] == pytest.approx(found["steps"][0]["held_out_loss"])
    assert last["held_out_loss"] == pytest.approx(found["steps"][-1]["held_out_loss"])
    assert found["best"]["choosing_loss"] <= first["choosing_loss"]
    assert Path("runs/train_lm/checkpoint.pt").read_bytes() == kept


def test_a_model_of_another_text_is_refused(trained, text, capsys) -> None:
    text.write_text(text.read_text()[::-1])
    assert lm_head.main(trained) == 2
    assert "was trained on another text than --data" in capsys.readouterr().err
    assert os.listdir("out") == []


def test_the_committed_results_are_read_as_they_are_written(found, tmp_path) -> None:
    """The files in bench/results have the fields that the study writes today."""
    lm_head.write(found, SETTINGS, {}, tmp_path / "mixer.json")
    written = json.loads((tmp_path / "mixer.json").read_text())["results"]
    kept = json.loads((RESULTS / "lm_head.json").read_text())["results"]
    assert kept.keys() == written.keys()
    assert list(kept["newton"]["variants"]) == list(written["newton"]["variants"])
    for name in ("least_squares", "least_squares_untrained"):
        assert kept[name].keys() == written[name].keys()
    assert kept["newton"]["facts"].keys() == written["newton"]["facts"].keys()
    assert kept["formulas"][0].keys() == written["formulas"][0].keys()
    for ours, theirs in zip(
        kept["newton"]["variants"].values(), found.newton.variants.values(), strict=True
    ):
        assert ours.keys() == vars(theirs).keys()

    kept = json.loads((RESULTS / "lm_head_gpt.json").read_text())["results"]
    steps = [gpt.NewtonStep(**step) for step in kept["steps"]]
    between = [gpt.Mixture(**mixture) for mixture in kept["between"]]
    solved = gpt.Found(
        **{**kept, "steps": steps, "between": between, "best": gpt.Best(**kept["best"])}
    )
    assert gpt.table(solved).row_count == len(steps) + 1
