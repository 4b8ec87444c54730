"""A text to learn, for the programs that train a language model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of made-up sentences, enough for a few epochs of the tiny recipe.

    The cache and the working folder are the test's own.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefgh", k=4)) for _ in range(50)]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(chance.choices(words, k=4000)))
    return path
