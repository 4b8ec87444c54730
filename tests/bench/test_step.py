"""The benchmark of the step: both sides do the same work, and cases, floors, targets are right."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import step, step_memory
from bench.measure import Medians
from bench.record import ROOT, read_csv
from bench.step_cases import (
    CPU_CASES,
    GPU_CASES,
    MAX_NORM,
    MODES,
    RULES,
    Case,
    fused_step,
    make_params,
    torch_step,
)

CPU = torch.device("cpu")
TINY = Case("mlp", "tiny", ((3, 5), (7,)), targets={"adamw": 2.0, "int8": 1.4})
EQUAL = Medians(1.0, 1.0, 1)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def test_cases_are_what_they_are_called() -> None:
    by_name = {case.name: case for case in (*CPU_CASES, *GPU_CASES)}
    assert len(by_name["gpt2"].shapes) == 148
    assert by_name["gpt2"].parameters == 124_439_808  # as OpenAI's weights count
    assert len(by_name["small"].shapes) == 400
    assert len(by_name["mlp"].shapes) == 6
    assert by_name["many"].parameters == 2000 * 4096
    assert by_name["billion"].parameters == 10**9
    assert by_name["billion"].floor_bytes() == 32 * 10**9
    assert by_name["billion-bf16"].floor_bytes() == 24 * 10**9


def test_floors_count_every_state_as_it_is_stored() -> None:
    billion = next(case for case in GPU_CASES if case.name == "billion")
    bytes_of = {
        (rule.name, mode.name): step.Outcome(billion, EQUAL, rule, mode).floor_bytes / 10**9
        for rule in RULES.values()
        for mode in MODES.values()
    }
    assert bytes_of["adamw", "float32"] == bytes_of["adam", "float32"] == 32
    assert bytes_of["adamw", "bfloat16"] == 24
    assert bytes_of["adamw", "int8"] == 16 + 4 * (1 + 4 / 128)
    assert bytes_of["rmsprop", "float32"] == 40
    assert {bytes_of[name, "float32"] for name in ("sgd", "adagrad", "lion")} == {24}
    assert {bytes_of[name, "bfloat16"] for name in ("sgd", "adagrad", "lion")} == {20}


def test_targets_are_those_of_the_rule_or_of_the_mode() -> None:
    assert step.Outcome(TINY, EQUAL).target == 2.0
    assert step.Outcome(TINY, EQUAL, RULES["sgd"]).target is None
    assert step.Outcome(TINY, EQUAL, RULES["sgd"]).passed
    outcome = step.Outcome(TINY, EQUAL, RULES["sgd"], MODES["int8"])
    assert (outcome.target, outcome.against) == (1.4, "fusedstep, float32")
    assert not outcome.passed


@every_rule
def test_both_sides_do_the_same_work_with_the_states_that_are_counted(rule) -> None:
    params = [make_params(TINY, CPU) for _ in range(3)]
    before = [p.clone() for p in params[0]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params[0]])
    assert norm > MAX_NORM
    for make, side in ((fused_step, params[0]), (torch_step, params[1])):
        call = make(side, rule)
        call()
        call()
    torch.testing.assert_close(params[0], params[1], rtol=1e-5, atol=1e-6)
    assert not any(torch.equal(a, b) for a, b in zip(before, params[0], strict=True))

    optimizer = rule.ours(params[2], **rule.arguments)
    optimizer.step()
    kept = [value for value in optimizer.state[params[2][0]].values() if value.shape == (3, 5)]
    assert len(kept) == rule.states


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_smaller_state_is_timed_against_our_own_step(name: str) -> None:
    made = []
    rule = RULES["adamw"]

    def ours(params: list, **arguments: object) -> torch.optim.Optimizer:
        made.append(arguments.get("state_dtype"))
        return rule.ours(params, **arguments)

    mode = MODES[name]
    watched = replace(rule, ours=ours, theirs=lambda *_, **__: pytest.fail("torch was timed"))
    outcome = step.contest(TINY, CPU, 0, watched, mode)
    assert made == [mode.options["state_dtype"], None]
    assert outcome.medians.ratio > 0


def test_by_default_smaller_state_is_timed_for_adamw_on_a_large_model(monkeypatch) -> None:
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


def test_a_row_holds_the_outcome() -> None:
    row = step.Outcome(TINY, Medians(0.5e-3, 2e-3, 9)).row({"torch": "2"}, 0.25)
    assert (row["torch"], row["rule"], row["mode"], row["target"]) == ("2", "adamw", "float32", 2.0)
    assert (row["our_ms"], row["their_ms"], row["ratio"]) == ("0.5", "2", "4")
    assert (row["samples"], row["extra_memory_percent"]) == (9, "0.250")
    assert float(row["gb_per_s"]) == pytest.approx(TINY.parameters * 32 / 0.5e-3 / 1e9, rel=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, as Linux has it")
def test_peak_memory_counts_what_was_touched() -> None:
    """In a process of its own: the peak of this one may lie far above what it uses now."""
    code = (
        "import torch; from bench.step_memory import peak_resident_bytes as peak; before = peak(); "
        "block = torch.ones(32 << 20, dtype=torch.float64); print(peak() - before, block.nbytes)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    grown, touched = map(int, result.stdout.split())
    assert 0.9 * touched < grown < 1.5 * touched


def test_memory_of_small_cases_is_left_out() -> None:
    assert step_memory.extra_percent(TINY, CPU) is None


def test_a_whole_run_ends_in_a_table_and_a_figure(monkeypatch, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")
    from bench import plot

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
    rows = [(row["rule"], row["threads"]) for row in read_csv(path)]
    assert rows == [("rmsprop", "1"), ("sgd", "1")]

    monkeypatch.setattr(sys, "argv", ["plot.py", "--csv", str(path)])
    plot.main()
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
