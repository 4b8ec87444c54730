"""The study of precision: every mode is trained, its bytes are counted, its loss is compared."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")
pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")
pytest.importorskip("rich", reason="needs the bench extra: rich")

BENCH = Path(__file__).parents[2] / "bench"
STEPS = 3
BFLOAT16 = "bfloat16, to nearest"


@pytest.fixture(scope="module")
def study():
    """bench/precision.py, found as Python finds it when it is run as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import precision

        yield precision


@pytest.fixture(scope="module")
def comparison(study):
    """Every mode, trained for a few steps on tokens of which each has one of three successors."""
    from lm.corpus import Corpus

    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randint(1, 4, (2000,), generator=generator).cumsum(0) % 512).int()
    corpus = Corpus(training=tokens[:1600], validation=tokens[1600:], tokenizer=None)
    recipe = replace(study.SIZES["tiny"], steps=STEPS)
    updates = {name: mode.update for name, mode in study.MODES.items()}
    return study.Comparison(recipe, corpus, updates)


@pytest.fixture(scope="module")
def finished(study, comparison, tmp_path_factory):
    """What the study wrote and returned."""
    out = tmp_path_factory.mktemp("out")
    found = study.study(comparison, out, study.Console(file=io.StringIO()))
    return out, found


def test_every_mode_learns_from_the_same_start(study, comparison, finished) -> None:
    first, last = comparison.validations[0], comparison.validations[-1]
    assert (first["step"], last["step"]) == (0, STEPS)
    for name in study.MODES:
        assert first[name] == pytest.approx(first[study.REFERENCE], rel=1e-3)
        assert last[name] < first[name]


def test_bytes_are_those_of_the_tensors(study, comparison, finished) -> None:
    _, found = finished
    count = sum(p.numel() for p in comparison.runs[study.REFERENCE].model.parameters())
    steps = 4 * len(list(comparison.runs[study.REFERENCE].model.parameters())) / count
    state = {name: row["state_bytes"] - steps for name, row in found.items()}
    params = {name: row["parameter_bytes"] for name, row in found.items()}
    assert state[study.REFERENCE] == state[BFLOAT16] == pytest.approx(8)
    assert state["bfloat16 state"] == pytest.approx(4)
    assert 2 + 8 / 128 <= state["int8 state"] < 2.2  # a shorter block has a whole scale
    assert state["bfloat16, float32 master"] == pytest.approx(8 + 4)
    assert state["bfloat16, remainder"] == pytest.approx(8 + 2)
    assert state["bfloat16, stochastic"] == pytest.approx(8)
    assert {name: 2.0 if name.startswith("bfloat16, ") else 4.0 for name in found} == params


def test_what_is_written_has_every_mode(study, comparison, finished) -> None:
    out, found = finished
    written = json.loads((out / "precision.json").read_text())
    assert written["results"] == found
    assert list(found) == list(study.MODES)
    assert found[study.REFERENCE]["difference_percent"] == 0
    assert all(row["step_ms"] > 0 for row in found.values())
    assert written["validations"][-1]["step"] == STEPS
    assert (out / "precision.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_says_what_missed(study, finished) -> None:
    found = {name: dict(row) for name, row in finished[1].items()}
    found["bfloat16 state"]["difference_percent"] = 0.49
    found["int8 state"]["difference_percent"] = -0.51
    console = study.Console(file=io.StringIO(), width=140)
    console.print(study.table(found))
    lines = console.file.getvalue().splitlines()
    verdicts = {name: next(line for line in lines if name in line) for name in found}
    assert "met" in verdicts["bfloat16 state"]
    assert "missed" in verdicts["int8 state"]
    assert "wanted" not in verdicts[BFLOAT16]
