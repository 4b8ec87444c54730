"""Timing in turns, and what is kept of it: CSV files, the commit, files written whole."""

from __future__ import annotations

import pytest
import torch

from bench import measure, record
from bench.record import append_csv, read_csv, text_table, write_json, write_whole


def test_sides_take_turns_and_short_calls_are_repeated() -> None:
    calls: list[tuple[str, int]] = []

    def timer(side: str, repeats: int) -> float:
        calls.append((side, repeats))
        return repeats * {"ours": 1e-4, "theirs": 5e-3}[side]

    ours, theirs = measure.alternate("ours", "theirs", timer, seconds=0, least_samples=3)
    assert ours == pytest.approx([1e-4] * 3)
    assert theirs == pytest.approx([5e-3] * 3)
    rounds = calls[4:]  # after the warm-up of both
    first, second = ("ours", 20), ("theirs", 1)
    assert rounds == [first, second, second, first, first, second]


def test_rows_are_appended_and_other_columns_refused(tmp_path) -> None:
    path = tmp_path / "results" / "step.csv"
    row = {**measure.facts(torch.device("cpu")), "ratio": "4"}
    append_csv([row], path)
    append_csv([row, row], path)
    rows = read_csv(path)
    assert len(rows) == 3
    assert (rows[2]["ratio"], rows[2]["torch"]) == ("4", torch.__version__)
    with pytest.raises(ValueError, match=r"step.csv: columns must be \['date'"):
        append_csv([{"date": 1}], path)


def test_committed_results_have_the_columns_that_are_written_today() -> None:
    where = list(measure.facts(torch.device("cpu")))
    for path in record.RESULTS.glob("*.csv"):
        rows = read_csv(path)
        assert list(rows[0])[: len(where)] == where
        assert all(float(row["ratio"]) > 0 for row in rows)


def test_commit_comes_from_git_or_else_from_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.delenv("FUSEDSTEP_COMMIT", raising=False)
    assert record.commit() == "unknown"
    monkeypatch.setenv("FUSEDSTEP_COMMIT", "abc123")
    assert record.commit() == "abc123"


def test_a_table_is_aligned() -> None:
    assert text_table([["", "ms"], ["a", "1.5"], ["bcd", "12"]], right=[1]) == (
        "      ms\na    1.5\nbcd   12"
    )


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "file"
    write_whole(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"loss": float("nan")}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
