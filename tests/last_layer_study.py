"""Fixtures of the study of the last layer: its program, settings for seconds, and a text."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def program():
    """bench/lm_head.py, found as Python finds it when it is run as a script."""
    for package in ("tokenizers", "matplotlib", "rich"):
        pytest.importorskip(package, reason=f"needs the bench extra: {package}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import lm_head

        yield lm_head


@pytest.fixture(scope="module")
def settings(program):
    return replace(
        program.Settings(),
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


@pytest.fixture
def text(tmp_path, monkeypatch):
    """Made-up sentences; cache and working folder are the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefgh", k=4)) for _ in range(50)]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(chance.choices(words, k=4000)))
    return path
