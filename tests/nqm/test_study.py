"""The study of the noisy quadratic model: each claim holds, and can fail; the command line."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")
pytest.importorskip("rich", reason="needs the bench extra: rich")
pytest.importorskip("scipy", reason="needs the bench extra: scipy")
pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")

from rich.console import Console

from bench.studies.nqm import __main__ as command
from bench.studies.nqm.claims import CLAIMS
from bench.studies.nqm.figures import draw
from bench.studies.nqm.sweep import LINES, POWERS, QUICK, Found, sweep
from bench.studies.stages import Stages
from fusedstep.nqm import Result, critical_batch_size


@pytest.fixture(scope="module")
def found() -> Found:
    with Stages(Console(file=io.StringIO())) as stages:
        return sweep(QUICK, stages)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_claim_holds(claim, found):
    outcome = claim(found)
    assert outcome.held, outcome.numbers
    assert any(letter.isdigit() for letter in outcome.numbers)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_claim_does_not_hold_where_it_makes_no_difference(claim, found):
    # Every line is SGD's with a rate that does not depend on B; schedules save nothing.
    sgd = {size: result._replace(lr=0.1) for size, result in found.lines["SGD"].items()}
    schedules = {
        size: schedule._replace(steps=sgd[size].steps) for size, schedule in found.schedules.items()
    }
    alike = replace(found, lines=dict.fromkeys(LINES, sgd), schedules=schedules)
    if claim.__name__ == "preconditioning_raises_the_critical_batch_size":
        first, *others = POWERS
        more = {
            size: Result(2 * r.steps if size > 4 else r.steps, *r[1:]) for size, r in sgd.items()
        }
        alike = replace(alike, lines={first: sgd} | dict.fromkeys(others, more))
    assert not claim(alike).held


def test_its_critical_batch_sizes_are_those_of_the_package(found):
    there = critical_batch_size("sgd", bins=QUICK.bins, batch_sizes=(4, 2**20))
    assert found.critical("SGD") == there


def test_the_figures_are_drawn(found, tmp_path: Path):
    paths = draw(found, tmp_path)
    assert [path.name for path in paths] == [
        "rules.png",
        "rates.png",
        "powers.png",
        "schedules.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_the_command_writes_all_it_found(found, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(command, "sweep", lambda settings, stages: found)
    screen = io.StringIO()
    status = command.run(["--quick", "--out", str(tmp_path)], Console(file=screen, width=140))
    assert status == 0
    written = json.loads((tmp_path / "nqm.json").read_text())
    assert all(claim["held"] for claim in written["claims"])
    assert written["lines"].keys() == LINES.keys()
    assert written["schedules"]["4"]["steps"] == found.schedules[4].steps
    assert all(claim(found).text[:20] in screen.getvalue() for claim in CLAIMS)


def test_the_command_says_by_its_status_that_a_claim_fails(found, tmp_path: Path, monkeypatch):
    lines = found.lines | {"momentum": found.lines["SGD"]}
    monkeypatch.setattr(command, "sweep", lambda settings, stages: replace(found, lines=lines))
    assert command.run(["--out", str(tmp_path)], Console(file=io.StringIO())) == 1


def test_an_unknown_option_is_refused_in_a_sentence(capsys):
    assert command.main(["--fast"]) == 2
    assert "unrecognized arguments: --fast" in capsys.readouterr().err
