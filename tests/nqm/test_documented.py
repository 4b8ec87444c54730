"""The docstrings of the noisy quadratic model."""

from __future__ import annotations

import inspect

import pytest

from fusedstep import nqm
from tests.support.documented import check

pytest.importorskip("scipy", reason="needs the nqm extra: scipy")


@pytest.mark.parametrize(
    "name", ["steps_to_target", "critical_batch_size", "loss_curve", "simulate"]
)
def test_functions(name: str) -> None:
    check(getattr(nqm, name))


def test_optimal_schedule() -> None:
    check(nqm.optimal_schedule)


def test_noise_scale() -> None:
    check(nqm.NoiseScale)
    assert all(
        nqm.NoiseScale.__dict__[name].__doc__ for name in dir(nqm.NoiseScale) if name[0] != "_"
    )


@pytest.mark.parametrize("name", ["Result", "Schedule", "Simulation"])
def test_results(name: str) -> None:
    text = inspect.getdoc(getattr(nqm, name))
    assert all(f"\n    {field}: " in text for field in getattr(nqm, name)._fields)
