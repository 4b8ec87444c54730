"""The docstrings of the last layer's functions and of LeastSquares with its methods."""

from __future__ import annotations

import inspect

import pytest

from fusedstep import lm_head
from tests.support.documented import check

FUNCTIONS = [name for name in lm_head.__all__ if inspect.isfunction(getattr(lm_head, name))]


@pytest.mark.parametrize("name", [*FUNCTIONS, "LeastSquares"])
def test_last_layer(name: str) -> None:
    check(getattr(lm_head, name))


@pytest.mark.parametrize(
    "name", ["update", "solve", "mse", "merge", "all_reduce", "load_state_dict"]
)
def test_methods_of_least_squares(name: str) -> None:
    check(getattr(lm_head.LeastSquares, name), example=False)
