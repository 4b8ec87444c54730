"""The group "map": every cell is named once, and both sides of each kind do the same work."""

from __future__ import annotations

import pytest
import torch

from bench import map as bench_map
from bench import norm
from bench.case import MAX_NORM, Case, random_params
from bench.rounds import Effort, measured
from bench.step_cases import RULES

CPU = torch.device("cpu")
SHAPES = ((3, 5), (7,))
MATRICES = ((6, 5), (5, 7))


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    found = list(bench_map.cases())
    assert len({case.name for case in found}) == len(found)
    return {case.name: case for case in found}


def test_the_map_has_every_function_shape_dtype_and_rank(cases) -> None:
    parts = [name.split("/") for name in cases]
    assert {function for _, function, _, _ in parts} == {
        *("get_total_norm", "clip_grad_norm_", "clip_grad_norm_-unclipped", "AdamW+clip"),
        *(rule.title for rule in RULES.values() if rule.title != "Lion"),
        *("pinv", "lstsq"),
    }
    forms = {form for _, function, _, form in parts if function not in ("pinv", "lstsq")}
    assert forms == {"float32", "bfloat16"}
    assert {form for _, function, _, form in parts if function == "pinv"} == {
        f"{dtype}-{rank}" for dtype in ("float32", "float64") for rank in bench_map.RANKS
    }
    assert cases["map/Adam/gpt2/bfloat16"].elements == 124_439_808
    assert cases["map/Adam/gpt2/bfloat16"].dtype == "bfloat16"
    assert cases["map/lstsq/16x200x50/float64-half"].elements == 16 * 200 * 50


@pytest.fixture
def small(monkeypatch) -> list[Case]:
    monkeypatch.setattr(bench_map, "SETS", {"small": SHAPES})
    monkeypatch.setattr(bench_map, "HIDDEN", {"small": MATRICES})
    monkeypatch.setattr(bench_map, "SHAPES", ((8, 8), (2, 9, 4)))
    return list(bench_map.cases())


def test_both_sides_of_every_kind_of_cell_do_the_same(small) -> None:
    assert len(small) == 10 * 2 + 2 * 2 * 6
    for case in small:
        for outcome in measured(case, CPU, Effort(0, 1), room=9):
            assert outcome.passed, f"{case.name}: {outcome.provider} {outcome.check}"


@pytest.mark.parametrize("clips", [False, True])
def test_a_clip_scales_gradients_or_leaves_them(clips: bool) -> None:
    before = torch.cat([p.grad.flatten() for p in random_params(SHAPES, torch.float32, CPU)])
    function = "clip" if clips else "unclipped"
    for side in norm.sides_of(function, SHAPES, torch.float32, CPU):
        side.sample(3)
        *_, a, b = side.result()  # behind the norm, where nothing was clipped
        after = torch.cat([a.flatten(), b])
        assert torch.equal(after, before) != clips
        assert (float(after.norm()) < MAX_NORM) == clips


@pytest.mark.parametrize(
    ("name", "rank"), [("8x8/float64-half", 4), ("8x8/float64-tenth", 1), ("2x9x4/float64-half", 2)]
)
def test_ranks_are_those_of_the_names(small, name: str, rank: int) -> None:
    (problem, _) = (case.sides.args[0] for case in small if case.name.endswith(name))
    found = torch.linalg.matrix_rank(problem.matrices(CPU))
    assert set(found.flatten().tolist()) == {rank}
