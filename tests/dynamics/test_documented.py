"""The docstrings of the dynamics: their examples hold."""

from __future__ import annotations

import inspect

import pytest

from fusedstep import dynamics
from tests.support.documented import check

FIELDS = {"Eigenpairs", "Measurement"}


@pytest.mark.parametrize("name", sorted(set(dynamics.__all__) - FIELDS))
def test_functions(name: str) -> None:
    check(getattr(dynamics, name))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_results(name: str) -> None:
    text = inspect.getdoc(getattr(dynamics, name))
    assert all(f"\n    {field}: " in text for field in getattr(dynamics, name)._fields)
