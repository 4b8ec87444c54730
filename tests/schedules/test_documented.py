"""The docstrings of the schedules and of param_groups."""

from __future__ import annotations

import pytest

from fusedstep import param_groups, schedules
from tests.support.documented import check


@pytest.mark.parametrize("name", schedules.__all__)
def test_schedules(name: str) -> None:
    check(getattr(schedules, name))


def test_param_groups() -> None:
    check(param_groups)
