"""The benchmark of the host: fresh gradients at every step, what is fitted, and a whole run."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bench import host
from bench.record import read_csv


def test_every_step_has_gradients_at_other_addresses() -> None:
    seen = []

    def side(params: list[torch.Tensor]) -> host.Call:
        return lambda: seen.append([p.grad.data_ptr() for p in params])

    loop = host.Loop(side, 3)
    assert loop.seconds() >= 0
    assert len(seen) == host.WARM_UP + 1
    for before, after in pairwise(seen):
        assert not set(before) & set(after)


def test_both_sides_update_the_parameters() -> None:
    ours, theirs = (host.Loop(side, 2) for side in host.SIDES)
    assert all(map(torch.count_nonzero, ours.params))
    torch.testing.assert_close(ours.params, theirs.params)


def test_a_fit_finds_the_line() -> None:
    counts = [1, 6, 150]
    assert host.fit(counts, [5 + 0.25 * n for n in counts]) == pytest.approx((5, 0.25))


def test_a_whole_run(monkeypatch, tmp_path: Path, capsys) -> None:
    path = tmp_path / "host.csv"
    options = ["--tensors", "1", "--tensors", "5", "--seconds", "0", "--csv", str(path)]
    monkeypatch.setattr(sys, "argv", ["host.py", *options])
    host.main()
    printed = capsys.readouterr().out
    rows = read_csv(path)
    assert [(row["tensors"], row["threads"]) for row in rows] == [("1", "1"), ("5", "1")]
    assert all(float(row["our_us"]) > 0 for row in rows)
    assert "our_us" in printed.split("a + b n")[1]
