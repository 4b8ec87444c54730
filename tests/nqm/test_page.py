"""docs/batch_size_and_rate.md: its examples print what they print there; its figures exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs the nqm extra: scipy")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "batch_size_and_rate.md"


def test_its_examples() -> None:
    text = PAGE.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    report: list[str] = []
    found = doctest.DocTestRunner().run(test, out=report.append)
    assert found.failed == 0, "".join(report)


def test_its_links() -> None:
    links = re.findall(r"\]\((\.\./[\w./]+)", PAGE.read_text())
    assert len([link for link in links if link.endswith(".png")]) == 5
    assert all((PAGE.parent / link).exists() for link in links)
