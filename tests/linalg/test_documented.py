"""The docstrings of pinv and lstsq."""

from __future__ import annotations

import pytest

import fusedstep
from tests.support.documented import check


@pytest.mark.parametrize("name", ["pinv", "lstsq"])
def test_pseudo_inverses(name: str) -> None:
    check(getattr(fusedstep, name))
