"""The microbenchmarks: both sides do the same work, in turns, and the figures are kept."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def micro():
    """The parts of bench/step.py, found as Python finds them when it is run as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        from micro import cases, contest, memory, origin, record, rules

        yield SimpleNamespace(
            cases=cases, contest=contest, memory=memory, origin=origin, record=record, rules=rules
        )


@pytest.fixture
def tiny(micro):
    return micro.cases.Case("mlp", "tiny", ((3, 5), (7,)), targets={"adamw": 2.0, "int8": 1.4})


def test_cases_are_what_they_are_called(micro) -> None:
    by_name = {case.name: case for case in (*micro.cases.CPU_CASES, *micro.cases.GPU_CASES)}
    assert len(by_name["gpt2"].shapes) == 148
    assert by_name["gpt2"].parameters == 124_439_808  # as OpenAI's weights count
    assert len(by_name["small"].shapes) == 400
    assert len(by_name["mlp"].shapes) == 6
    assert by_name["many"].parameters == 2000 * 4096
    assert by_name["billion"].parameters == 10**9
    assert by_name["billion"].floor_bytes() == 32 * 10**9
    assert by_name["billion-bf16"].floor_bytes() == 24 * 10**9


def test_floors_count_every_state_as_it_is_stored(micro) -> None:
    billion = next(case for case in micro.cases.GPU_CASES if case.name == "billion")
    bytes_of = {}
    for rule in micro.rules.RULES.values():
        for mode in micro.rules.MODES.values():
            outcome = micro.contest.Outcome(billion, 1, 1, 1, rule, mode)
            bytes_of[rule.name, mode.name] = outcome.floor_bytes / 10**9
    assert bytes_of["adamw", "float32"] == bytes_of["adam", "float32"] == 32
    assert bytes_of["adamw", "bfloat16"] == 24
    assert bytes_of["adamw", "int8"] == 16 + 4 * (1 + 4 / 128)
    assert bytes_of["rmsprop", "float32"] == 40
    assert {bytes_of[name, "float32"] for name in ("sgd", "adagrad", "lion")} == {24}
    assert {bytes_of[name, "bfloat16"] for name in ("sgd", "adagrad", "lion")} == {20}


@pytest.mark.parametrize("name", ["adamw", "adam", "rmsprop", "sgd", "adagrad", "lion"])
def test_a_rule_has_the_states_it_is_counted_with(micro, tiny, name: str) -> None:
    rule = micro.rules.RULES[name]
    params = micro.contest.make_params(tiny, CPU)
    optimizer = rule.ours(params, **rule.arguments)
    optimizer.step()
    kept = [value for value in optimizer.state[params[0]].values() if value.shape == (3, 5)]
    assert len(kept) == rule.states


def test_targets_are_those_of_the_rule_or_of_the_mode(micro, tiny) -> None:
    rules, modes = micro.rules.RULES, micro.rules.MODES
    assert micro.contest.Outcome(tiny, 1, 1, 1).target == 2.0
    assert micro.contest.Outcome(tiny, 1, 1, 1, rules["sgd"]).target is None
    outcome = micro.contest.Outcome(tiny, 1, 1, 1, rules["sgd"], modes["int8"])
    assert (outcome.target, outcome.against) == (1.4, "fusedstep, float32")


@pytest.mark.parametrize("name", ["adamw", "adam", "rmsprop", "sgd", "adagrad", "lion"])
def test_both_sides_do_the_same_work(micro, tiny, name: str) -> None:
    rule = micro.rules.RULES[name]
    params = [micro.contest.make_params(tiny, CPU) for _ in range(2)]
    before = [p.clone() for p in params[0]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params[0]])
    assert norm > micro.contest.MAX_NORM
    for make, side in zip(
        (micro.contest.fused_step, micro.contest.torch_step), params, strict=True
    ):
        step = make(side, rule)
        step()
        step()
    torch.testing.assert_close(params[0], params[1], rtol=1e-5, atol=1e-6)
    assert not any(torch.equal(a, b) for a, b in zip(before, params[0], strict=True))


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_smaller_state_is_timed_against_our_own_step(micro, tiny, name: str) -> None:
    made = []
    rule = micro.rules.ADAMW

    def ours(params: list, **arguments: object) -> torch.optim.Optimizer:
        made.append(arguments.get("state_dtype"))
        return rule.ours(params, **arguments)

    mode = micro.rules.MODES[name]
    watched = replace(rule, ours=ours, theirs=lambda *_, **__: pytest.fail("torch was timed"))
    outcome = micro.contest.contest(tiny, CPU, 0, watched, mode)
    assert made == [mode.options["state_dtype"], None]
    assert outcome.ratio > 0


def test_by_default_smaller_state_is_timed_for_adamw_on_a_large_model(
    micro, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich", reason="needs the bench extra: rich")
    monkeypatch.syspath_prepend(str(BENCH))
    import step

    def names(*arguments: str) -> list[tuple[str, ...]]:
        monkeypatch.setattr(sys, "argv", ["step.py", *arguments])
        contests = step.contests(step.arguments(), CPU)
        return [(case.name, rule.name, mode.name) for case, rule, mode in contests]

    every = names()
    assert len(every) == 3 * 6 + 2
    smaller = [("gpt2", "adamw", "bfloat16"), ("gpt2", "adamw", "int8")]
    assert [timed for timed in every if timed[2] != "float32"] == smaller
    assert names("--rule", "sgd", "--mode", "int8") == [("gpt2", "sgd", "int8")]
    assert names("--case", "mlp", "--rule", "lion") == [("mlp", "lion", "float32")]


def test_sides_take_turns_and_short_steps_are_repeated(micro) -> None:
    calls: list[tuple[str, int]] = []

    def timer(side: str, repeats: int) -> float:
        calls.append((side, repeats))
        return repeats * {"ours": 1e-4, "theirs": 5e-3}[side]

    ours, theirs = micro.contest.alternate("ours", "theirs", timer, seconds=0, least_samples=3)
    assert ours == pytest.approx([1e-4] * 3)
    assert theirs == pytest.approx([5e-3] * 3)
    rounds = calls[4:]  # after the warm-up of both
    first, second = ("ours", 20), ("theirs", 1)
    assert rounds == [first, second, second, first, first, second]


def test_figures_are_appended_and_other_columns_refused(micro, tiny, tmp_path: Path) -> None:
    path = tmp_path / "results" / "step.csv"
    outcome = micro.contest.Outcome(tiny, ours_ms=0.5, their_ms=2.0, samples=9)
    row = micro.record.row(micro.record.facts(CPU), outcome, 0.25)
    micro.record.append([row], path)
    micro.record.append([row, row], path)
    rows = micro.record.read(path)
    assert len(rows) == 3
    assert rows[2]["ratio"] == "4"
    assert (rows[2]["rule"], rows[2]["mode"], rows[2]["target"]) == ("adamw", "float32", "2.0")
    assert float(rows[2]["gb_per_s"]) == pytest.approx(
        tiny.parameters * 32 / 0.5e-3 / 1e9, rel=1e-3
    )
    assert rows[2]["torch"] == torch.__version__
    with pytest.raises(ValueError, match=r"step.csv: columns must be \['date'"):
        micro.record.append([{"date": 1}], path)


def test_commit_comes_from_git_or_else_from_the_environment(
    micro, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(micro.origin, "ROOT", tmp_path)
    monkeypatch.delenv("FUSEDSTEP_COMMIT", raising=False)
    assert micro.origin.commit() == "unknown"
    monkeypatch.setenv("FUSEDSTEP_COMMIT", "abc123")
    assert micro.origin.commit() == "abc123"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, as Linux has it")
def test_peak_memory_counts_what_was_touched() -> None:
    """In a process of its own: the peak of this one may lie far above what it uses now."""
    code = (
        "import torch; from micro.memory import peak_resident_bytes as peak; before = peak(); "
        "block = torch.ones(32 << 20, dtype=torch.float64); print(peak() - before, block.nbytes)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=BENCH, capture_output=True, text=True, check=True)
    grown, touched = map(int, result.stdout.split())
    assert 0.9 * touched < grown < 1.5 * touched


def test_memory_of_small_cases_is_left_out(micro, tiny) -> None:
    assert micro.memory.extra_percent(tiny, CPU) is None


@pytest.mark.slow
def test_a_whole_run_ends_in_a_table_and_a_figure(
    micro, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("rich", reason="needs the bench extra: rich")
    pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")
    monkeypatch.syspath_prepend(str(BENCH))
    import plot
    import step

    path = tmp_path / "step.csv"
    threads = torch.get_num_threads()
    options = ["--device", "cpu", "--case", "mlp", "--seconds", "0", "--threads", "1"]
    options += ["--rule", "sgd", "--rule", "rmsprop"]
    options += ["--csv", str(path)]
    monkeypatch.setattr(sys, "argv", ["step.py", *options])
    step.main()
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "MLP, 6 tensors" in printed
    assert "torch, foreach" in printed
    rows = [(row["rule"], row["threads"]) for row in micro.record.read(path)]
    assert rows == [("rmsprop", "1"), ("sgd", "1")]

    monkeypatch.setattr(sys, "argv", ["plot.py", "--csv", str(path)])
    plot.main()
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
