"""The guard of instruction counts: what it reads, and that it names what costs more or less."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from bench import instructions
from bench.instruction_paths import HOST, LOOPS, PATHS, Counted, HotPath

PROFILE = """events: Ir
desc: Trigger: Client Request: AdamW, int8 state: 32768

fn=(1)
0 12
totals: 4812
"""
KEYS = {"loops": "GCC 12.2.0, x86_64, AVX2", "host": "Python 3.11, torch 2.14.1, GCC 12.2.0"}
NAMES = (LOOPS[0].name, HOST[0].name)


def test_a_profile_is_read() -> None:
    assert instructions.read_profile(PROFILE) == ("AdamW, int8 state", 32768, 4812)
    with pytest.raises(ValueError, match="must have the name of a request, and totals"):
        instructions.read_profile("events: Ir\n")


def test_what_a_call_costs_beside_its_units_drops_out() -> None:
    path = HotPath("loops", "any", "element", (10, 30), lambda size: Counted(lambda: None), units=2)
    assert path.cost([1000 + 7 * 20, 1000 + 7 * 60]) == 7


def test_sections_are_written_as_they_are_read() -> None:
    kept = {
        f"{part}: {key}": {name: 12.345}
        for (part, key), name in zip(KEYS.items(), NAMES, strict=True)
    }
    kept["loops: Clang 19"] = {path.name: 123456.0 + i for i, path in enumerate(LOOPS)}
    text = instructions.sections_text(kept)
    assert instructions.read_sections(text) == kept
    assert "AdamW" in text.splitlines()[1]
    assert text.splitlines()[1].endswith("element")


def test_the_file_keeps_every_path() -> None:
    kept = instructions.read_sections(instructions.KEPT.read_text())
    assert {name for counts in kept.values() for name in counts} == PATHS.keys()
    for section, counts in kept.items():
        assert {PATHS[name].part for name in counts} == {section.split(":")[0]}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the program with made-up counts of two paths, against what `kept` says of them."""

    def run(found: float, kept: dict[str, dict[str, float]], *options: str) -> tuple[int, Path]:
        calls = {
            (name, size): found * (1 + i) for name in NAMES
            for i, size in enumerate(PATHS[name].sizes)
        }  # fmt: skip
        monkeypatch.setattr(instructions, "count", lambda names: (KEYS, calls))
        paths = [part for name in NAMES for part in ("--path", name)]
        monkeypatch.setattr(sys, "argv", ["instructions.py", *paths, *options])
        file = tmp_path / "instructions.txt"
        file.write_text(instructions.sections_text(kept))
        return instructions.main(file), file

    return run


def expectation(found: float, factor: float = 1.0) -> dict[str, dict[str, float]]:
    """What is kept where the counts were `factor` times what `run` finds for `found`."""
    loop, host = map(PATHS.__getitem__, NAMES)
    return {
        f"loops: {KEYS['loops']}": {loop.name: factor * loop.cost([found, 2 * found])},
        f"host: {KEYS['host']}": {host.name: factor * host.cost([found])},
    }


@pytest.mark.parametrize(
    ("factor", "named"),
    [(1, NAMES[:0]), (0.92, NAMES), (1.08, NAMES), (0.97, NAMES[:1]), (1.03, NAMES[:1])],
)
def test_a_path_that_costs_more_or_less_is_named(run, capsys, factor, named) -> None:
    status, _ = run(400_000, expectation(400_000, factor))
    lines = [line for line in capsys.readouterr().out.splitlines() if ": expected" in line]
    assert [line.split(": expected")[0] for line in lines] == list(named)
    assert status == bool(named)


def test_counts_of_other_keys_are_not_compared_and_stay(run, capsys) -> None:
    loops, host = "loops: GCC 15.1.0, x86_64, AVX2", "host: Python 3.99"
    others = {loops: {NAMES[0]: 1.0}, host: {NAMES[1]: 1.0}}
    status, _ = run(400_000, others)
    printed = capsys.readouterr().out
    assert status == 0
    for part, key in KEYS.items():
        assert f"[{part}: {key}] is not compared" in printed
    assert "[loops: GCC 15.1.0, x86_64, AVX2] [host: Python 3.99]" in printed

    status, file = run(400_000, others, "--update")
    assert status == 0
    kept = instructions.read_sections(file.read_text())
    assert {section: kept[section] for section in others} == others
    assert len(kept) == 4


def test_a_path_that_is_not_kept_is_named(run, capsys) -> None:
    kept = expectation(400_000) | {f"host: {KEYS['host']}": {HOST[1].name: 1.0}}
    status, _ = run(400_000, kept)
    assert status == 1
    assert f"{NAMES[1]}: was not expected" in capsys.readouterr().out


def test_without_valgrind_a_sentence_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(instructions.shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["instructions.py"])
    assert instructions.main() == 2
    assert "valgrind and a C compiler must be on PATH" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind to count instructions")
def test_real_counts_are_guarded(monkeypatch, capsys, tmp_path: Path) -> None:
    paths = ["SGD, momentum", "norm", "clip_grad_norm_, one"]
    counted = instructions.count(paths)
    monkeypatch.setattr(instructions, "count", lambda names: counted)
    options = [part for path in paths for part in ("--path", path)]
    # `make instructions` compares with what is kept; here, with themselves and with 8 % less.
    file = tmp_path / "instructions.txt"
    file.write_text("")
    monkeypatch.setattr(sys, "argv", ["instructions.py", *options, "--update"])
    assert instructions.main(file) == 0
    kept = instructions.read_sections(file.read_text())
    less = {key: {name: 0.92 * n for name, n in counts.items()} for key, counts in kept.items()}
    file.write_text(instructions.sections_text(less))
    monkeypatch.setattr(sys, "argv", ["instructions.py", *options])
    capsys.readouterr()
    assert instructions.main(file) == 1
    assert capsys.readouterr().out.count(": expected") == len(paths)
