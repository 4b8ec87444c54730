"""`python -m bench`: which cases run, what is refused, what a run records and shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fusedstep
from bench import __main__ as program
from bench import rounds, table
from bench.case import MAX_NORM, Case, Side, Work, side_of
from bench.measure import LEAST_SAMPLE
from bench.peers import Peer
from bench.record import ROOT, read_csv
from bench.rounds import Effort, measured
from bench.step import case_of, work_of

CPU = torch.device("cpu")
COLUMNS = [
    "date", "machine", "device", "threads", "load", "python", "torch", "cuda", "driver", "commit",
    "group", "case", "provider", "version", "dtype", "mode", "tensors", "elements", "rounds",
    "p10_us", "p50_us", "p90_us", "ratio", "ratio_low", "ratio_high", "least_bytes", "operations",
    "state_bytes", "peak_bytes", "roof_us", "gb_per_s", "roof_percent", "check",
]  # fmt: skip
SMALLEST = "step/sgd/plain/mlp/float32"


def sgd(provider: str, work: Work, device: torch.device, lr: float = 1.0) -> Side:
    """A step without a clip; its rate may be wrong."""
    params = work.params(device)
    step = torch.optim.SGD(params, lr=lr, momentum=0.9).step
    return side_of(provider, step, device, lambda: params)


def honest_sides(work: Work, device: torch.device) -> Iterator[Side]:
    if work.rule == "sgd" and not work.clip:
        yield sgd("honest, first", work, device)
        yield sgd("Honest, second", work, device)


def wrong_sides(work: Work, device: torch.device) -> Iterator[Side]:
    yield sgd("wrong", work, device, lr=1.5)


def failing_sides(work: Work, device: torch.device) -> Iterator[Side]:
    raise RuntimeError("no such library\nand more")
    yield


HONEST = Peer("honest", ("numpy",), honest_sides)
WRONG = Peer("wrong", ("numpy",), wrong_sides)
FAILING = Peer("failing", ("numpy",), failing_sides)
ABSENT = Peer("absent", ("no-such-distribution",), wrong_sides)


class Steady:
    """Memory that streams at 1 GB/s when the run begins, and at 2 GB/s while sides are timed."""

    rate = 1e9

    def __init__(self, device: torch.device) -> None:
        pass

    def sample(self) -> float:
        return 2e9


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {peer.name: peer for peer in (HONEST, WRONG, FAILING, ABSENT)}
    monkeypatch.setattr(program, "PEERS", every)
    monkeypatch.setitem(program.PRODUCT_SIZE, "cpu", 64)
    monkeypatch.setattr(program, "Stream", Steady)


def run(path: Path, *arguments: str) -> tuple[int, list[dict[str, str]]]:
    threads = str(torch.get_num_threads())
    status = program.main(
        ["--device", "cpu", "--quick", "--threads", threads, "--out", str(path), *arguments]
    )
    return status, read_csv(path) if path.exists() else []


def test_a_run_records_and_shows_every_side(peers: None, tmp_path: Path, capsys) -> None:
    path = tmp_path / "bench.csv"
    status, rows = run(path, "--cases", SMALLEST, "--peers", "honest", "absent")
    assert status == 0
    assert list(rows[0]) == COLUMNS
    assert [row["provider"] for row in rows] == ["fusedstep", "honest, first", "Honest, second"]
    ours, first, _ = rows
    assert (ours["case"], ours["group"], ours["ratio"]) == (SMALLEST, "step", "1")
    for row in rows:
        assert int(row["rounds"]) >= 7
        assert 0 < float(row["p10_us"]) <= float(row["p50_us"]) <= float(row["p90_us"])
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
    assert float(first["check"]) < 0.01
    assert (int(ours["tensors"]), int(ours["elements"])) == (6, 535_818)
    assert int(ours["least_bytes"]) == 20 * 535_818
    assert int(ours["state_bytes"]) >= 4 * 535_818
    moved = 20 * 535_818 / float(ours["p50_us"]) / 1e3
    assert float(ours["gb_per_s"]) == pytest.approx(moved, rel=1e-3)
    assert float(ours["roof_percent"]) == pytest.approx(50 * moved, rel=1e-3)  # of 2 GB/s
    assert first["version"]
    shown = capsys.readouterr().out
    assert "not installed, so not timed: absent" in shown
    assert "memory streams 1 GB/s" in shown
    assert shown.count("◀") == 2  # the fastest, and what the mark means
    ratios = [float(row["ratio"]) for row in rows]
    faster = min(ratios) < 1
    assert f"another side is faster in {int(faster)} of 1 cases" in shown

    assert run(path, "--cases", SMALLEST, "--peers", "honest")[1][:3] == rows  # appended


def test_what_computes_something_else_is_not_timed(peers: None, tmp_path: Path, capsys) -> None:
    status, rows = run(tmp_path / "bench.csv", "--cases", SMALLEST)
    assert status == 1
    by_name = {row["provider"]: row for row in rows}
    wrong, failing = by_name["wrong"], by_name["failing"]
    assert wrong["check"] == "differs by 5.0e-01"  # half as far again as ours
    assert failing["check"] == "not made: RuntimeError: no such library"
    assert failing["version"] == wrong["version"] != ""
    for row in (wrong, failing):
        assert (row["rounds"], row["p50_us"], row["ratio"]) == ("0", "", "")
    assert by_name["honest, first"]["ratio"]
    assert f"{SMALLEST}: wrong differs by 5.0e-01" in capsys.readouterr().out


def test_globs_choose_cases_and_quick_the_small_ones(peers: None, capsys) -> None:
    def listed(*arguments: str) -> list[str]:
        assert program.main(["--list", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if not line.startswith("not installed")]

    every = listed()
    assert len(every) == len(set(every)) > 70
    groups = {"step", "norm", "solve", "map", "host", "memory", "share"}
    assert {name.split("/")[0] for name in every} == groups
    assert listed("--cases", "norm/norm/*", "host/*/1") == [
        *(f"norm/norm/{name}" for name in ("mlp", "400-small", "gpt2", "8M")),
        "host/adamw/1",
    ]
    quick = listed("--quick")
    assert SMALLEST in quick
    assert "step/adamw/clip/gpt2/float32" not in quick
    large = "step/adamw/clip/gpt2/float32"
    assert listed("--quick", "--cases", large) == [large]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cases", "nothing/*"], "--cases must match names that --list prints, got"),
        (["--seconds", "0"], "--seconds: must be a finite number above 0, got 0"),
        (["--peers", "nobody"], "invalid choice: 'nobody'"),
    ],
)
def test_wrong_arguments_are_refused(peers: None, arguments, told: str, capsys) -> None:
    assert program.main(arguments) == 2
    assert told in capsys.readouterr().err


def test_a_results_file_with_other_columns_is_refused_before_anything_is_timed(
    peers: None, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "other.csv"
    path.write_text("date,ratio\n1,2\n")
    status, _ = run(path, "--cases", SMALLEST)
    told = capsys.readouterr()
    assert status == 2
    assert "bench: --out: other.csv: columns must be ['date', " in told.err
    assert SMALLEST not in told.out
    assert path.read_text() == "date,ratio\n1,2\n"
    assert run(path, "--cases", SMALLEST, "--peers", "honest", "--no-record")[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused(peers: None, capsys) -> None:
    assert program.main(["--device", "cuda", "--cases", SMALLEST]) == 2
    assert "bench: --device: no timings on CUDA: " in capsys.readouterr().err


def test_what_does_not_fit_is_left_out_with_a_sentence(
    peers: None, monkeypatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr(program, "free_bytes", lambda device: 10_000)
    status, rows = run(tmp_path / "bench.csv", "--cases", SMALLEST)
    assert (status, rows) == (0, [])
    needed = 2 * (12 + 4) * 535_818 / 1e9
    told = f"{SMALLEST}: left out, two sides at a time need {needed:.3g} GB of memory"
    assert told in capsys.readouterr().out


def test_room_counts_sides_beside_the_copies_of_the_check(monkeypatch) -> None:
    case = case_of("one", work_of("adamw", ((1000,),)), [])
    assert case.side_bytes == 20 * 1000
    for free, room in ((20_000 + 8000, 1), (40_000 + 7999, 1), (40_000 + 8000, 2), (0, 0)):
        monkeypatch.setattr(program, "free_bytes", lambda device, free=free: free / 0.9 + 0.5)
        assert program.room_for(case, CPU) == room
    assert program.room_for(replace(case, side_bytes=0), CPU) > 100


@pytest.mark.parametrize(
    ("rule", "clip", "arguments"),
    [
        ("AdamW", True, {"betas": (0.8, 0.999)}),
        ("AdamW", True, {"betas": (0.9, 0.5)}),
        ("AdamW", False, {}),
        ("Lion", True, {"betas": (0.8, 0.99)}),
        ("Lion", True, {"betas": (0.9, 0.9)}),
        ("Lion", False, {}),
    ],
)
def test_the_check_sees_other_averages_and_a_clip_that_is_missing(
    rule: str, clip: bool, arguments: dict[str, object]
) -> None:
    def other(work: Work, device: torch.device) -> Iterator[Side]:
        params = work.params(device)
        limit = {"max_norm": MAX_NORM} if clip else {}
        optimizer = getattr(fusedstep, rule)(params, **{**work.arguments, **arguments}, **limit)
        yield side_of("other", optimizer.step, device, lambda: params)

    work = work_of(rule.lower(), ((100, 30), (30,)))
    _, found = measured(case_of("one", work, [Peer("other", (), other)]), CPU, Effort(0, 7), 2)
    assert "differs by" in found.check


def test_with_little_room_ours_meets_the_others_in_turn() -> None:
    alive: list[int] = []
    count = 0

    def counted(work: Work, device: torch.device) -> Iterator[Side]:
        nonlocal count
        for name in "abc":
            count += 1
            alive.append(count)
            side = sgd(name, work, device)
            yield replace(side, close=lambda: closed(1))

    def closed(number: int) -> None:
        nonlocal count
        count -= number

    work = work_of("sgd", ((30,),), clip=False)
    case = case_of("one", work, [Peer("counted", (), counted)])
    ours, *others = measured(case, CPU, Effort(0, 7), room=2)
    assert alive == [1, 1, 1]  # each is gone before the next is made
    assert [outcome.provider for outcome in others] == ["a", "b", "c"]
    assert len(ours.times) == 3 * 7
    assert all(len(outcome.ratios) == 7 for outcome in others)
    count = 0
    alive.clear()
    assert len(measured(case, CPU, Effort(0, 7), room=9)[0].times) == 7
    assert alive == [1, 2, 3]


def test_a_side_alone_is_timed() -> None:
    (ours,) = measured(case_of("one", work_of("lion", ((30,),)), []), CPU, Effort(0, 7), room=2)
    assert len(ours.times) == 7
    assert ours.ratio == (1, 1, 1)


def test_a_side_that_stops_while_it_is_timed_has_failed_and_the_others_are_timed() -> None:
    calls = {"before": 0, "stops": 0, "after": 0}

    def stopping(work: Work, device: torch.device) -> Iterator[Side]:
        for name in calls:
            side = sgd(name, work, device)

            def sample(count: int, name: str = name, side: Side = side) -> float:
                calls[name] += 1
                if name == "stops" and calls[name] > 20:
                    raise RuntimeError("no longer\nand more")
                return max(side.sample(count), LEAST_SAMPLE)

            yield replace(side, sample=sample)

    case = case_of("one", work_of("sgd", ((30,),), clip=False), [Peer("stopping", (), stopping)])
    ours, *others = measured(case, CPU, Effort(0, 40), room=9)
    assert [(o.provider, o.passed, len(o.times)) for o in others] == [
        ("before", True, 40),
        ("stops", False, 0),
        ("after", True, 40),
    ]
    assert others[1].check == "fails: RuntimeError: no longer"
    assert len(ours.times) == 40
    assert calls["after"] > 50  # timed once more


def test_a_side_of_ours_that_stops_ends_the_run() -> None:
    def sides(device: torch.device) -> Iterator[Side]:
        side = sgd("fusedstep", work_of("sgd", ((30,),)), device)
        yield replace(side, sample=lambda count: 1 / (count - 1))

    case = replace(case_of("one", work_of("sgd", ((1,),)), []), sides=sides)
    with pytest.raises(ZeroDivisionError):
        measured(case, CPU, Effort(0, 7), room=2)


def test_the_load_is_that_of_the_timing_and_ours_is_busy_if_it_once_was(monkeypatch) -> None:
    said = iter(["others 0.01, average 1.00", "others 0.20, average 2.00, busy"] * 2)
    events: list[str] = []

    class Watch:
        def __init__(self) -> None:
            events.append("watch")

        def text(self) -> str:
            return next(said)

    def counted(work: Work, device: torch.device) -> Iterator[Side]:
        for name in ("a", "b", "c"):
            events.append(name)
            yield sgd(name, work, device, lr=1.5 if name == "b" else 1.0)

    monkeypatch.setattr(rounds, "Load", Watch)
    case = case_of("one", work_of("sgd", ((30,),), clip=False), [Peer("counted", (), counted)])
    ours, a, b, c = measured(case, CPU, Effort(0, 7), room=2)
    assert events == ["a", "watch", "b", "c", "watch"]
    assert (a.load, b.load) == ("others 0.01, average 1.00", "")
    assert ours.load == c.load == "others 0.20, average 2.00, busy"
    assert measured(case, CPU, Effort(0, 7), room=2)[0].load == ours.load


def test_ratios_are_taken_pair_by_pair() -> None:
    """A machine that slows down between the rounds changes both sides' times, and no ratio."""

    def sides(device: torch.device) -> Iterator[Side]:
        for provider, times in (("fusedstep", 1.0), ("other", 3.0)):
            moved = [torch.zeros(1)]

            def sample(calls: int, times: float = times, moved: list = moved) -> float:
                moved[0] = torch.ones(1)
                samples.append(times)
                return calls * times * (1 + len(samples) // 2 % 5)

            yield Side(provider, sample, lambda moved=moved: moved)

    samples: list[float] = []
    case = replace(case_of("one", work_of("sgd", ((1,),)), []), sides=sides, renews=False)
    ours, other = measured(case, CPU, Effort(0, 11), room=2)
    assert len(set(ours.times)) > 1
    assert other.ratios == pytest.approx([3.0] * 11)
    assert other.ratio == pytest.approx((3.0, 3.0, 3.0))


def test_distances_are_those_of_all_tensors_together() -> None:
    a = [torch.zeros(2), torch.zeros(3, 1, dtype=torch.bfloat16)]
    b = [torch.ones(2), torch.full((3, 1), 2.0)]
    assert rounds.distance(a, b) == pytest.approx(math.sqrt(2 + 12))
    assert math.isnan(rounds.distance(a, b[:1]))
    assert math.isnan(rounds.distance(a, [b[0], b[1].T]))


@pytest.mark.parametrize(
    ("microseconds", "shown"),
    [("0.5", "0.5 µs"), ("999", "999 µs"), ("999.9", "1 ms"), ("123456", "123 ms"), ("", "")],
)
def test_times_are_shown_in_the_unit_that_fits(microseconds: str, shown: str) -> None:
    assert table.duration(microseconds) == shown


def test_the_cases_in_which_another_side_is_faster() -> None:
    rows = [
        {"device": "cpu", "case": case, "provider": provider, "ratio": ratio}
        for case, provider, ratio in (
            ("a", "fusedstep", "1"), ("a", "x", "0.9"), ("a", "y", "0.8"), ("a", "z", ""),
            ("b", "fusedstep", "1"), ("b", "x", "1.2"), ("c", "fusedstep", ""),
        )
    ]  # fmt: skip
    assert list(table.lost(rows)) == [("a", "y", "0.8")]


def test_a_providers_version_is_that_of_the_longest_name() -> None:
    found = {replace(HONEST, name=name): name for name in ("hon", "honest")}
    assert program.version_of("Honest, fused", found) == "honest"
    assert program.version_of("hon 8-bit", found) == "hon"
    assert program.version_of("torch, fused", found) == torch.__version__
    assert program.version_of("someone", found) == ""


def test_committed_results_have_the_columns_that_are_written_today() -> None:
    path = ROOT / "bench" / "results" / "bench.csv"
    if path.exists():
        assert list(read_csv(path)[0]) == COLUMNS
    case = next(program.all_cases([]))
    assert isinstance(case, Case)
    row = program.row_of(case, rounds.Outcome("x", "", True), program.where_of(CPU), "1", 1.0)
    assert list(row) == COLUMNS
