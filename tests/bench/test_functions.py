"""The groups "norm", "solve" and "host": both sides solve the same problems, counted rightly."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from bench import host, least_squares, newton, norm, pinv, softmax
from bench.case import MAX_NORM, Case
from bench.measure import Call
from bench.rounds import Effort, measured

CPU = torch.device("cpu")
# The problems of each module, small ones of the same kind.
SMALL = {
    pinv: [replace(p, shape=(2, 9, 4), rank=p.rank and 3) for p in pinv.PROBLEMS],
    least_squares: [replace(p, tokens=60, vocabulary=20, width=4) for p in least_squares.PROBLEMS],
    newton: [replace(p, tokens=3, vocabulary=30, width=5) for p in newton.PROBLEMS],
    softmax: [replace(p, rows=3, vocabulary=40) for p in softmax.PROBLEMS],
}
GROUPS = (norm, *SMALL, host)


def small_cases() -> list[Case]:
    found = [
        replace(case, sides=partial(module.sides_of, problem))
        for module, problems in SMALL.items()
        for case, problem in zip(module.cases(), problems, strict=True)
    ]
    found += [
        norm.case_of(f"norm/{function}/{dtype}", function, ((3, 5), (7,)), dtype)
        for function in norm.FUNCTIONS
        for dtype in norm.TOLERANCES
    ]
    return [*found, next(host.cases())]


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.name)
def test_every_side_passes_the_check_and_is_timed(case: Case) -> None:
    ours, *others = measured(case, CPU, Effort(0, 7), room=9)
    assert ours.provider == "fusedstep"
    assert others
    for outcome in others:
        assert outcome.passed, outcome.check
        assert len(outcome.times) == len(outcome.ratios) == 7


def test_every_step_of_the_host_has_gradients_at_other_addresses() -> None:
    seen = []

    def make(params: list[torch.Tensor]) -> Call:
        return lambda: seen.append([param.grad.data_ptr() for param in params])

    assert host.Loop(make, 3).seconds(5) >= 0
    assert len(seen) == 5
    for before, after in pairwise(seen):
        assert not set(before) & set(after)


def test_names_are_unique_and_begin_with_their_group() -> None:
    cases = [case for group in GROUPS for case in group.cases()]
    assert len({case.name for case in cases}) == len(cases)
    assert {case.group for case in cases} == {"norm", "solve", "host"}
    shapes = {problem.name: problem.shape for problem in pinv.PROBLEMS}
    assert (shapes["sequences"], shapes["tiny"]) == ((64, 511, 128), (5000, 16, 16))


@pytest.mark.parametrize("problem", SMALL[pinv], ids=lambda problem: problem.name)
def test_both_sides_invert_the_same_matrices(problem: pinv.Problem) -> None:
    A = problem.matrices(CPU)
    assert torch.linalg.matrix_rank(A).tolist() == [problem.rank or 4] * 2
    ours, theirs = (side(A) for side in problem.sides())
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("problem", SMALL[newton], ids=lambda problem: problem.name)
def test_both_sides_take_the_same_newton_step(problem: newton.Problem) -> None:
    given = problem.problem(CPU)
    (ours, our_losses), (theirs, losses) = (f(*given) for f in (problem.ours, problem.theirs))
    assert float((ours - theirs).norm() / (theirs - given[0]).norm()) < 1e-5
    torch.testing.assert_close(our_losses.float(), losses)


def test_the_floor_of_pinv_counts_each_operation_once() -> None:
    """Two 3 x 2 matrices: 12 for a triangle of XᵀX, 8 for the inverse, 24 for the product."""
    assert pinv.Problem("", (2, 3, 2)).operations == 2 * (12 + 8 + 24)
    assert pinv.Problem("", (2, 2, 3)).operations == 2 * (12 + 8 + 24)
    assert pinv.Problem("", (2, 3, 2), columns=5).operations == 2 * (12 + 8 + 60 + 40)


def test_the_least_bytes_of_pinv_are_the_matrix_and_what_is_computed() -> None:
    assert pinv.Problem("", (2, 3, 2)).bytes == 4 * 2 * (6 + 6)
    assert pinv.Problem("", (2, 3, 2), torch.float64, columns=5).bytes == 8 * 2 * (6 + 10)


def test_every_call_clips() -> None:
    for side in norm.sides_of("clip", ((3, 5), (7,)), torch.float32, CPU):
        before = torch.cat([grad.flatten() for grad in side.result()]).clone()
        for _ in range(3):
            side.sample(1)
            after = torch.cat([grad.flatten() for grad in side.result()]).clone()
            assert after.norm() < before.norm()
            before = after
    assert MAX_NORM * norm.SHRINK**1_000_000 > 1e-5  # clip_grad_norm_ adds 1e-6 to the norm
