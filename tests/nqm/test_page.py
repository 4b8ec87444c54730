"""docs/batch_size_and_rate.md: its examples print what they print there; its figures exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.documented import check_page

pytest.importorskip("scipy", reason="needs the nqm extra: scipy")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "batch_size_and_rate.md"


def test_its_examples() -> None:
    check_page(PAGE, least=7)


def test_its_links() -> None:
    links = re.findall(r"\]\((\.\./[\w./]+)", PAGE.read_text())
    assert len([link for link in links if link.endswith(".png")]) == 5
    assert all((PAGE.parent / link).exists() for link in links)
