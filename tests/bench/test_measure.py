"""Timing in rounds, its statistics, the load, and what is kept: CSV files, files written whole."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from bench import load, measure, record
from bench.record import append_csv, read_csv, text_table, write_json, write_whole

Calls = list[tuple[str, int]]


def sampler(calls: Calls, side: str, seconds: float) -> Callable[[int], float]:
    """Notes each call, and says that it took so many seconds for each repetition."""

    def sample(repeats: int) -> float:
        calls.append((side, repeats))
        return repeats * seconds

    return sample


def test_sides_take_turns_in_a_drawn_order_that_is_the_same_in_every_run() -> None:
    calls: Calls = []
    samplers = [sampler(calls, side, 1.0) for side in "abc"]
    measure.in_rounds(samplers, 0, least_rounds=60)
    sides = "".join(side for side, _ in calls)
    before, rounds = sides[:7], [sides[at : at + 3] for at in range(7, len(sides), 3)]
    assert before == "aaabbcc"  # woken, then how long is a call?
    assert len(rounds) == 60
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    follows = [sides[7:][at : at + 2] for at in range(len(sides) - 8)]
    assert all(follows.count(pair) > 12 for pair in ("ab", "ac", "ba", "bc", "ca", "cb"))
    again = list(calls)
    calls.clear()
    measure.in_rounds(samplers, 0, least_rounds=60)
    assert calls == again


def test_short_calls_are_repeated_until_a_sample_is_long_enough() -> None:
    calls: Calls = []
    sides = {"a": 1e-4, "b": 5e-3, "c": 2e-3}
    taken = measure.in_rounds([sampler(calls, *side) for side in sides.items()], 0, 4)
    for samples, seconds in zip(taken, sides.values(), strict=True):
        assert samples == pytest.approx([seconds] * 4)
    assert set(calls[-12:]) == {("a", 32), ("b", 1), ("c", 1)}


def test_a_slow_first_call_does_not_decide_how_many_make_a_sample() -> None:
    slow = iter([1.0, 1.0])
    assert measure.repeats_of(lambda repeats: next(slow, repeats * 1e-3)) == 1
    slow = iter([1.0])
    assert measure.repeats_of(lambda repeats: next(slow, repeats * 1e-3)) == 2


@pytest.mark.parametrize(
    ("rate", "work"),
    [
        (partial(measure.product_rate, size=8, dtype=torch.float32), 2 * 8**3),
        (lambda device: measure.Stream(device, elements=4).rate, 2 * 4 * 8),
    ],
)
def test_a_rate_is_that_of_the_best_sample_of_many_calls(monkeypatch, rate, work: int) -> None:
    """A launch of 1 ms comes before calls of 10 µs: it is hardly seen."""
    samples: list[int] = []

    def timer(call: Callable[[], object], repeats: int) -> float:
        call()
        samples.append(repeats)
        return (1e-3 if len(samples) % 4 else 0) + 1e-5 * repeats

    monkeypatch.setattr(measure, "timer_of", lambda device: timer)
    assert rate(torch.device("cpu")) == pytest.approx(work / 1e-5)
    assert samples[-7:] == [samples[-1]] * 7
    assert samples[-1] >= 128


def test_where_the_process_changes_all_idle_and_the_next_is_woken(monkeypatch) -> None:
    calls: Calls = []
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: calls.append(("idle", 0)))
    samplers = [sampler(calls, side, 1e-3) for side in "abc"]
    measure.in_rounds(samplers, 0, least_rounds=20, processes=[0, 7, 0])
    places, last, at = {"a": 0, "b": 7, "c": 0}, None, 0
    while at < len(calls):
        if calls[at][0] == "idle":
            (side, repeats), at = calls[at + 1], at + 2
            assert (repeats, places[side] != last) == (1, True)
            last = places[side]
        assert places[calls[at][0]] == last
        at += 1


def test_before_each_round_the_stream_is_sampled_and_the_caches_are_filled_again() -> None:
    calls: Calls = []
    samplers = [sampler(calls, side, 1.0) for side in "ab"]
    measure.in_rounds(samplers, 0, 20, before=lambda: calls.append(("pass", 0)))
    sides = "".join(side[0] for side, _ in calls)
    rounds = sides[sides.index("p") :].replace("p", " ").split()
    assert len(rounds) == 20
    assert set(rounds) == {"aab", "bba"}


def test_the_rate_of_memory_is_that_of_the_moment(monkeypatch) -> None:
    pace = 1e-3
    monkeypatch.setattr(measure, "timer_of", lambda device: lambda call, repeats: repeats * pace)
    stream = measure.Stream(torch.device("cpu"), elements=1000)
    assert stream.rate == pytest.approx(16_000 / 1e-3)
    pace = 4e-3
    assert stream.sample() == pytest.approx(16_000 / 4e-3)


@pytest.mark.parametrize("n", [*range(6, 40), 500, 5001])
def test_the_interval_of_the_median_is_that_of_the_binomial_distribution(n: int) -> None:
    binom = pytest.importorskip("scipy.stats", reason="needs scipy").binom
    values = list(range(n, 0, -1))
    low, high = measure.median_interval(values)
    assert low + high == n + 1
    # The median is below the k-th smallest where fewer than k values are below it.
    assert 2 * binom.cdf(low - 1, n, 0.5) <= 0.05 < 2 * binom.cdf(low, n, 0.5)


def test_few_samples_bound_no_median() -> None:
    assert measure.median_interval([1.0] * 5) == (-math.inf, math.inf)
    assert measure.median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)


def test_quantiles_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).exponential(size=23)
    found = measure.Quantiles.of(values.tolist())
    wanted = np.quantile(values, [0.1, 0.5, 0.9])
    assert [found.p10, found.p50, found.p90] == pytest.approx(wanted)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, as Linux has it")
def test_the_time_of_processes_that_we_start_is_ours_running_or_ended() -> None:
    work = "while sum(__import__('os').times()[:2]) < 0.4: pass\nprint(flush=True)\ninput()"
    before = load.own_seconds()
    command = [sys.executable, "-c", work]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        running = load.own_seconds() - before
        child.communicate(b"\n")
    assert running >= 0.35
    assert load.own_seconds() - before >= running - 0.02


def test_the_load_is_what_is_busy_beyond_ourselves(monkeypatch) -> None:
    at = {"perf_counter": 10.0, "busy": 100.0, "own": 20.0}
    monkeypatch.setattr(load.time, "perf_counter", lambda: at["perf_counter"])
    monkeypatch.setattr(load, "busy_seconds", lambda: at["busy"])
    monkeypatch.setattr(load, "own_seconds", lambda: at["own"])
    monkeypatch.setattr(load.os, "getloadavg", lambda: (1.5, 0, 0))
    watched = load.Load()
    at.update(perf_counter=20.0, busy=121.0, own=40.0)
    assert watched.text() == "others 0.10, average 1.50"
    at.update(busy=125.0)
    assert watched.text() == "others 0.50, average 1.50, busy"


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
        if path.name == "bench.csv":  # test_bench.py
            continue
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
