"""The study of the noise scale: what it measures, each claim can fail, its command line."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")
pytest.importorskip("rich", reason="needs the bench extra: rich")
pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")

from rich.console import Console

from bench.studies.language_model.corpus import Corpus, Sampler, windows
from bench.studies.language_model.model import GPT
from bench.studies.noise_scale import __main__ as command
from bench.studies.noise_scale.claims import CLAIMS
from bench.studies.noise_scale.figure import draw
from bench.studies.noise_scale.measure import QUICK, USUAL, Found, measure
from bench.studies.stages import Stages
from fusedstep.nqm import NoiseScale


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Tokens as often as words are: their frequencies are learned first, the rest is noise."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.multinomial(1 / torch.arange(1.0, 513), 20_000, True, generator=generator).int()
    return Corpus(training=tokens, validation=tokens[:2000], tokenizer=None)


@pytest.fixture(scope="module")
def found(corpus) -> Found:
    with Stages(Console(file=io.StringIO())) as stages:
        return measure(corpus, QUICK, stages)


def test_the_norms_are_those_of_the_mean_gradients(corpus, found) -> None:
    recipe = QUICK.recipe
    torch.manual_seed(recipe.seed)
    model = GPT(recipe.shape)
    texts = windows(corpus.training, recipe.shape.context, "training")
    batch = texts.rows(Sampler(len(texts), recipe.seed).take(recipe.batch))
    assert QUICK.sizes == [1, 2, 4, 8]
    assert USUAL.sizes == [4, 8, 16, 32]
    for size, norm in zip(QUICK.sizes, found.steps[0].norms, strict=True):
        model.zero_grad()
        model(*batch.rows(torch.arange(size)).long()).backward()
        squares = [p.grad.double().square().sum() for p in model.parameters()]
        assert norm == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-4)


def test_the_running_estimate_is_the_packages(found) -> None:
    scale = NoiseScale(1, 8, decay=QUICK.decay)
    for step in found.steps:
        scale.update(step.norms[0], step.norms[-1])
        assert step.value == scale.value
    assert len(found.steps) == QUICK.recipe.steps
    assert found.steps[-1].loss < found.steps[0].loss - 0.5


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_claim_holds_and_can_fail(claim, found) -> None:
    outcome = claim(found)
    assert outcome.held, outcome.numbers
    # Backwards, with norms that do not fall with the batch as a line in 1 / B.
    other = [
        replace(step, norms=[step.norms[0], *[2 * n for n in step.norms[1:-1]], step.norms[-1]])
        for step in reversed(found.steps)
    ]
    assert not claim(replace(found, steps=other)).held


def test_the_figure_is_drawn(found, tmp_path: Path) -> None:
    draw(found, tmp_path / "noise_scale.png")
    assert (tmp_path / "noise_scale.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_all_it_found(text: Path, tmp_path: Path, monkeypatch) -> None:
    screen, out = io.StringIO(), tmp_path / "out"
    short = replace(QUICK, recipe=replace(QUICK.recipe, steps=20))
    monkeypatch.setattr(command, "QUICK", short)
    status = command.run(
        ["--quick", "--data", str(text), "--out", str(out)], Console(file=screen, width=140)
    )
    written = json.loads((out / "noise_scale.json").read_text())
    assert status == (0 if all(claim["held"] for claim in written["claims"]) else 1)
    assert len(written["steps"]) == written["settings"]["steps"] == 20
    assert written["batch_sizes"] == QUICK.sizes
    assert written["steps"][0]["standard_error"] is None  # JSON has no infinity
    assert all(claim["text"][:20] in screen.getvalue() for claim in written["claims"])
    assert (out / "noise_scale.png").exists()


def test_an_unknown_option_is_refused_in_a_sentence(capsys) -> None:
    assert command.main(["--fast"]) == 2
    assert "unrecognized arguments: --fast" in capsys.readouterr().err
