"""Benchmarks of functions: both sides solve the same problems, a run is recorded and shown."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from bench import least_squares, newton, pinv, softmax
from bench.record import RESULTS

CPU = torch.device("cpu")
# Each program's cases with small problems of the same kind.
SMALL = {
    pinv: [replace(case, shape=(2, 9, 4), rank=case.rank and 3) for case in pinv.CASES],
    least_squares: [replace(c, tokens=60, vocabulary=20, width=4) for c in least_squares.CASES],
    newton: [replace(case, tokens=3, vocabulary=30, width=5) for case in newton.CASES],
    softmax: [replace(case, rows=3, vocabulary=40) for case in softmax.CASES],
}


def test_cases_of_pinv_are_those_with_a_target() -> None:
    shapes = {case.name: (case.shape, case.target) for case in pinv.CASES}
    assert shapes["sequences"] == ((64, 511, 128), 3.0)
    assert shapes["tiny"] == ((5000, 16, 16), 2.0)


@pytest.mark.parametrize("case", SMALL[pinv], ids=lambda case: case.name)
def test_both_sides_invert_the_same_matrices(case: pinv.Case) -> None:
    A = case.matrices(CPU)
    assert torch.linalg.matrix_rank(A).tolist() == [case.rank or 4] * 2
    ours, theirs = (side(A) for side in case.sides())
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_both_sides_solve_the_same_least_squares() -> None:
    case = SMALL[least_squares][0]
    hidden, tokens = case.batch(CPU)
    ours = least_squares.least_squares(hidden, tokens, case.vocabulary)
    torch.testing.assert_close(ours, case.torch_solution(hidden, tokens))


@pytest.mark.parametrize("case", SMALL[newton], ids=lambda case: case.name)
def test_both_sides_take_the_same_newton_step(case: newton.Case) -> None:
    problem = case.problem(CPU)
    assert newton.difference(case, problem) < 1e-5
    torch.testing.assert_close(case.ours(*problem)[1].float(), case.theirs(*problem)[1])


def test_the_floor_of_pinv_counts_each_operation_once() -> None:
    """Two 3 x 2 matrices: 12 for a triangle of XᵀX, 8 for the inverse, 24 for the product."""
    assert pinv.Case("", (2, 3, 2)).operations == 2 * (12 + 8 + 24)
    assert pinv.Case("", (2, 2, 3)).operations == 2 * (12 + 8 + 24)
    assert pinv.Case("", (2, 3, 2), columns=5).operations == 2 * (12 + 8 + 60 + 40)


@pytest.mark.parametrize("bench", SMALL, ids=lambda bench: bench.__name__.split(".")[-1])
def test_a_run_ends_in_a_table_and_a_record(bench, monkeypatch, tmp_path, capsys) -> None:
    name = bench.__name__.split(".")[-1]
    path = tmp_path / "results.csv"
    monkeypatch.setattr(bench, "CASES", SMALL[bench])
    monkeypatch.setattr(bench, "RATE_SIZE", 64, raising=False)
    options = ["--device", "cpu", "--seconds", "0", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", [name, *options, "--csv", str(path)])
    bench.main()
    shown = capsys.readouterr().out.splitlines()
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + len(bench.CASES)
    assert lines[0] == (RESULTS / f"{name}.csv").read_text().splitlines()[0]
    for case, line in zip(bench.CASES, shown[-len(bench.CASES) :], strict=True):
        assert line.startswith(case.name)
