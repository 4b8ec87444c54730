"""The list of marked files has no stale name, and every mark is declared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.marks import FIXTURES, PLACES, TESTS

ROOT = Path(__file__).resolve().parents[2]
PLACED = [(mark, place) for mark, places in PLACES.items() for place in places]


@pytest.mark.parametrize(("mark", "place"), PLACED)
def test_marked_places_exist(mark: str, place: str) -> None:
    assert (TESTS / place).exists()


def test_marks_are_declared() -> None:
    declared = set(re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.M))
    assert {"gpu", "slow", *PLACES, *FIXTURES} == declared
