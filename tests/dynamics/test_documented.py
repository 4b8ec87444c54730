"""The docstrings of the dynamics, and docs/curvature.md: their examples hold."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from fusedstep import dynamics
from tests.support.documented import check, check_page

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
    check_page(PAGE, least=5)
