"""The study of precision: every mode is trained, its bytes are counted, its loss is compared."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")
pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")
pytest.importorskip("rich", reason="needs the bench extra: rich")

from rich.console import Console

from bench import precision
from bench.precision import MODES, REFERENCE
from bench.record import RESULTS
from bench.studies.language_model.comparison import Comparison
from bench.studies.language_model.corpus import Corpus
from bench.studies.language_model.training import SIZES

STEPS = 3
BFLOAT16 = "bfloat16, to nearest"


@pytest.fixture(scope="module")
def comparison():
    """Every mode, trained for a few steps on tokens of which each has one of three successors."""
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randint(1, 4, (2000,), generator=generator).cumsum(0) % 512).int()
    corpus = Corpus(training=tokens[:1600], validation=tokens[1600:], tokenizer=None)
    recipe = replace(SIZES["tiny"], steps=STEPS)
    updates = {name: mode.update for name, mode in MODES.items()}
    return Comparison(recipe, corpus, updates)


@pytest.fixture(scope="module")
def finished(comparison, tmp_path_factory):
    """What the study wrote and returned."""
    out = tmp_path_factory.mktemp("out")
    found = precision.study(comparison, out, Console(file=io.StringIO()))
    return out, found


def test_every_mode_learns_from_the_same_start(comparison, finished) -> None:
    first, last = comparison.validations[0], comparison.validations[-1]
    assert (first.step, last.step) == (0, STEPS)
    for name in MODES:
        assert first.losses[name] == pytest.approx(first.losses[REFERENCE], rel=1e-3)
        assert last.losses[name] < first.losses[name]


def test_bytes_are_those_of_the_tensors(comparison, finished) -> None:
    _, found = finished
    count = sum(p.numel() for p in comparison.runs[REFERENCE].model.parameters())
    steps = 4 * len(list(comparison.runs[REFERENCE].model.parameters())) / count
    state = {name: row.state_bytes - steps for name, row in found.items()}
    params = {name: row.parameter_bytes for name, row in found.items()}
    assert state[REFERENCE] == state[BFLOAT16] == pytest.approx(8)
    assert state["bfloat16 state"] == pytest.approx(4)
    assert 2 + 8 / 128 <= state["int8 state"] < 2.2  # a shorter block has a whole scale
    assert state["bfloat16, float32 master"] == pytest.approx(8 + 4)
    assert state["bfloat16, remainder"] == pytest.approx(8 + 2)
    assert state["bfloat16, correction"] == pytest.approx(8 + 1)
    assert 3 + 8 / 128 <= state["bfloat16, correction, int8 state"] < 3.2
    assert state["bfloat16, stochastic"] == pytest.approx(8)
    assert {name: 2.0 if name.startswith("bfloat16, ") else 4.0 for name in found} == params


def test_what_is_written_has_every_mode(comparison, finished) -> None:
    out, found = finished
    written = json.loads((out / "precision.json").read_text())
    assert written["results"] == {name: asdict(row) for name, row in found.items()}
    assert list(found) == list(MODES)
    assert found[REFERENCE].difference_percent == 0
    assert all(row.step_ms > 0 for row in found.values())
    assert written["validations"][-1]["step"] == STEPS
    assert (out / "precision.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_says_what_missed(finished) -> None:
    found = dict(finished[1])
    for name, difference in (("bfloat16 state", 0.49), ("int8 state", -0.51)):
        found[name] = replace(found[name], difference_percent=difference)
    console = Console(file=io.StringIO(), width=140)
    console.print(precision.table(found))
    lines = console.file.getvalue().splitlines()
    verdicts = {name: next(line for line in lines if name in line) for name in found}
    assert "met" in verdicts["bfloat16 state"]
    assert "missed" in verdicts["int8 state"]
    assert "wanted" not in verdicts[BFLOAT16]


def test_the_committed_results_are_read_as_they_are_written(finished) -> None:
    kept = json.loads((RESULTS / "precision.json").read_text())
    written = json.loads((finished[0] / "precision.json").read_text())
    assert kept.keys() == written.keys()
    found = {name: precision.Result(**row) for name, row in kept["results"].items()}
    assert found.keys() == MODES.keys()
    assert precision.table(found).row_count == len(MODES)
