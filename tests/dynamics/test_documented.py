"""The docstrings of the dynamics, and docs/curvature.md: their examples hold."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import pytest

from fusedstep import dynamics
from tests.support.documented import check

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "curvature.md"
FIELDS = {"Eigenpairs", "Measurement"}


@pytest.mark.parametrize("name", sorted(set(dynamics.__all__) - FIELDS))
def test_functions(name: str) -> None:
    check(getattr(dynamics, name))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_results(name: str) -> None:
    text = inspect.getdoc(getattr(dynamics, name))
    assert all(f"\n    {field}: " in text for field in getattr(dynamics, name)._fields)


def test_the_page() -> None:
    text = PAGE.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    report: list[str] = []
    found = doctest.DocTestRunner().run(test, out=report.append)
    assert found.failed == 0, "".join(report)
