"""The benchmark of pinv: both sides solve the same problems, and its floor counts operations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("rich", reason="needs the bench extra: rich")
    monkeypatch.syspath_prepend(str(BENCH))
    import pinv

    return pinv


def small(bench) -> list:
    """Each case with few and small matrices of the same kind."""
    return [
        bench.Case(c.name, (2, 9, 4), c.dtype, c.rank and 3, c.columns, c.target)
        for c in bench.CASES
    ]


def test_cases_are_those_with_a_target(bench) -> None:
    shapes = {case.name: (case.shape, case.target) for case in bench.CASES}
    assert shapes["sequences"] == ((64, 511, 128), 3.0)
    assert shapes["tiny"] == ((5000, 16, 16), 2.0)


def test_both_sides_solve_the_same_problem(bench) -> None:
    for case in small(bench):
        A = case.matrices(CPU)
        assert torch.linalg.matrix_rank(A).tolist() == [case.rank or 4] * 2
        ours, theirs = (side(A) for side in case.sides())
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_floor_counts_each_operation_once(bench) -> None:
    """Two 3 x 2 matrices: 12 for a triangle of XᵀX, 8 for the inverse, 24 for the product."""
    assert bench.Case("", (2, 3, 2)).operations == 2 * (12 + 8 + 24)
    assert bench.Case("", (2, 2, 3)).operations == 2 * (12 + 8 + 24)
    assert bench.Case("", (2, 3, 2), columns=5).operations == 2 * (12 + 8 + 60 + 40)


def test_a_run_ends_in_a_table_and_a_record(bench, monkeypatch, tmp_path, capsys) -> None:
    path = tmp_path / "pinv.csv"
    monkeypatch.setattr(bench, "CASES", small(bench))
    monkeypatch.setattr(bench, "RATE_SIZE", 64)
    options = ["--device", "cpu", "--seconds", "0", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["pinv.py", *options, "--csv", str(path)])
    bench.main()
    assert "sequences" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + len(bench.CASES)
    assert {"ratio", "floor_ms", "our_error"} <= set(lines[0].split(","))
