"""The microbenchmarks: both sides do the same work, in turns, and the figures are kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def micro():
    """The parts of bench/step.py, found as Python finds them when it is run as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        from micro import cases, contest, memory, origin, record

        yield SimpleNamespace(
            cases=cases, contest=contest, memory=memory, origin=origin, record=record
        )


@pytest.fixture
def tiny(micro):
    return micro.cases.Case("mlp", "tiny", ((3, 5), (7,)), target=2.0)


def test_cases_are_what_they_are_called(micro) -> None:
    by_name = {case.name: case for case in (*micro.cases.CPU_CASES, *micro.cases.GPU_CASES)}
    assert len(by_name["gpt2"].shapes) == 148
    assert by_name["gpt2"].parameters == 124_439_808  # as OpenAI's weights count
    assert len(by_name["small"].shapes) == 400
    assert len(by_name["mlp"].shapes) == 6
    assert by_name["many"].parameters == 2000 * 4096
    assert by_name["billion"].parameters == 10**9
    assert by_name["billion"].floor_bytes == 32 * 10**9
    assert by_name["billion-bf16"].floor_bytes == 24 * 10**9


def test_both_sides_do_the_same_work(micro, tiny) -> None:
    params = [micro.contest.make_params(tiny, CPU) for _ in range(2)]
    before = [p.clone() for p in params[0]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params[0]])
    assert norm > micro.contest.MAX_NORM
    steps = [
        micro.contest.fused_step(params[0]),
        micro.contest.torch_step(params[1]),
    ]
    for step in steps:
        step()
        step()
    torch.testing.assert_close(params[0], params[1], rtol=1e-5, atol=1e-6)
    assert not any(torch.equal(a, b) for a, b in zip(before, params[0], strict=True))


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
    outcome = micro.contest.Outcome(tiny, ours_ms=0.5, torch_ms=2.0, samples=9)
    row = micro.record.row(micro.record.facts(CPU), outcome, 0.25)
    micro.record.append([row], path)
    micro.record.append([row, row], path)
    rows = micro.record.read(path)
    assert len(rows) == 3
    assert rows[2]["ratio"] == "4"
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
    options += ["--csv", str(path)]
    monkeypatch.setattr(sys, "argv", ["step.py", *options])
    step.main()
    torch.set_num_threads(threads)
    assert "MLP, 6 tensors" in capsys.readouterr().out
    assert [row["threads"] for row in micro.record.read(path)] == ["1"]

    monkeypatch.setattr(sys, "argv", ["plot.py", "--csv", str(path)])
    plot.main()
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
