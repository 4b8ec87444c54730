"""The map: both sides of a cell do the same work, and a run ends in a record and a picture."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from bench import map as bench_map
from bench.case import MAX_NORM, random_params
from bench.record import read_csv

CPU = torch.device("cpu")
SHAPES = ((3, 5), (7,))


def test_every_cell_is_named_once() -> None:
    names = {(cell.function, cell.work, cell.variant) for cell in bench_map.CELLS}
    assert len(names) == len(bench_map.CELLS)


@pytest.mark.parametrize("clips", [False, True])
def test_both_sides_clip_the_same_gradients(clips: bool) -> None:
    sides = [random_params(SHAPES, torch.float32, CPU) for _ in range(2)]
    before = [param.grad.clone() for param in sides[0]]
    for namespace, params in zip((bench_map.fusedstep, torch.nn.utils), sides, strict=True):
        call = bench_map.clip(namespace, params, clips)
        for _ in range(3):
            call()
    for ours, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    norm = torch.nn.utils.get_total_norm([param.grad for param in sides[0]])
    assert clips == (not all(map(torch.equal, before, (param.grad for param in sides[0]))))
    assert clips == (float(norm) < MAX_NORM)


@pytest.mark.parametrize("function", ["AdamW", "SGD", "RMSprop", "Adagrad", "clip + AdamW"])
def test_both_sides_take_the_same_step(function, monkeypatch) -> None:
    made = []

    def make(shapes: object, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
        made.append(random_params(SHAPES, dtype, device))
        return made[-1]

    monkeypatch.setattr(bench_map, "random_params", make)
    cell = next(c for c in bench_map.CELLS if c.function == function and c.variant == "float32")
    for side in cell.sides(CPU):
        side()
    for ours, theirs in zip(*made, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("function", ["pinv", "lstsq"])
def test_both_sides_solve_the_same_problem(function: str) -> None:
    cells = [c for c in bench_map.CELLS if c.function == function and c.work == "[16, 8, 8]"]
    assert len(cells) == 6  # ranks and dtypes
    for cell in cells:
        ours, theirs = (side() for side in cell.sides(CPU))
        assert ours.dtype == bench_map.DTYPES[cell.variant.split(",")[0]]
        error = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)
        assert error < 1e-3


def test_a_run_ends_in_a_record_and_a_picture(monkeypatch, tmp_path, capsys) -> None:
    small = [
        replace(cell, sides=lambda device: (lambda: None, lambda: None))
        for cell in bench_map.CELLS
        if cell.work in ("one of 10", "[8, 8]")
    ]
    monkeypatch.setattr(bench_map, "CELLS", small)
    path = tmp_path / "map.csv"
    options = ["--device", "cpu", "--seconds", "0", "--case", "AdamW", "--case", "lstsq"]
    monkeypatch.setattr(sys, "argv", ["map", *options, "--csv", str(path)])
    threads = torch.get_num_threads()
    try:
        bench_map.main()
    finally:
        torch.set_num_threads(threads)
    rows = read_csv(path)
    assert len(rows) == 2 * (2 + 6)  # threads; dtypes, dtypes and ranks
    assert {row["threads"] for row in rows} == {"1", "2"}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    slower = sum(float(row["ratio"]) < 1 for row in rows)
    assert (f"slower than torch: {slower} of 16" in capsys.readouterr().out) == (slower > 0)
