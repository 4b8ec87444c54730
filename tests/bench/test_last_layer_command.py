"""bench/lm_head.py from its command line: what it leaves behind, what it refuses, how it stops."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture
def tiny(program, settings, monkeypatch):
    """Options for which the program takes a second, with a vocabulary that has every byte."""
    monkeypatch.setitem(program.USUAL, "mixer", replace(settings, vocabulary=300))
    return ["--steps=2", "--tokens=2048", "--newton-tokens=16", "--newton-iterations=1"]


def test_the_program_leaves_tables_a_figure_and_its_numbers(program, tiny, text, capsys) -> None:
    assert program.main([*tiny, "--data", str(text), "--out", "out"]) == 0
    shown = capsys.readouterr().out
    for words in ("3333.33", "fusedstep.pinv", "AdamW, last layer alone", "full, as published"):
        assert words in shown
    assert sorted(os.listdir("out")) == ["lm_head.json", "lm_head.png"]
    assert Path("out/lm_head.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads(Path("out/lm_head.json").read_text())
    assert kept["settings"]["steps"] == 2
    assert kept["results"]["least_squares"]["tokens"] == 2048
    assert {"torch", "commit", "threads", "load"} <= set(kept["machine"])


def test_ctrl_c_stops_after_the_step_at_hand_and_writes_nothing(
    program, tiny, text, monkeypatch, capsys
) -> None:
    from head import streaming

    before = signal.getsignal(signal.SIGINT)
    fit = streaming.temperature.fit

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return fit(*arguments)

    monkeypatch.setattr(streaming.temperature, "fit", interrupted)
    assert program.main([*tiny, "--data", str(text), "--out", "out"]) == 130
    assert "Stopped; nothing was written." in capsys.readouterr().out
    assert os.listdir("out") == []
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "argument --steps: must be an integer of at least 1, got 0"),
        (["--lr", "inf"], "argument --lr: must be a finite number above 0, got inf"),
        (["--newton-seconds", "-1"], "argument --newton-seconds: must be a finite number above 0"),
        (["--model", "rnn"], "argument --model: invalid choice: 'rnn'"),
        (["--newton-steps", "3"], "--newton-steps is for --model gpt, got --model mixer"),
        (["--model=gpt", "--lr=1"], "--lr is for --model mixer, got --model gpt"),
        (["--model=gpt"], "--checkpoint: there is no runs/train_lm/checkpoint.pt; `python bench"),
        (["--model=gpt", "--checkpoint=out/lm_head.json"], "--checkpoint: out/lm_head.json is dam"),
        (["--data", "missing"], "--data must exist, got missing"),
        (["--data", "short.txt"], "--data must hold more text: its training part has "),
        (["--out", "short.txt"], "--out: short.txt cannot be made: File exists"),
    ],
)
def test_bad_input_gives_one_sentence_and_changes_nothing(
    program, text, capsys, arguments, sentence
) -> None:
    Path("short.txt").write_text("A text that is too short.")
    Path("out").mkdir()
    Path("out/lm_head.json").write_text("of an earlier run")
    assert program.main(["--data", str(text), "--out", "out", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"lm_head: {sentence}")
    assert errors.count("\n") == 1
    assert os.listdir("out") == ["lm_head.json"]
    assert Path("out/lm_head.json").read_text() == "of an earlier run"


@pytest.fixture
def trained(program, text):
    """The options for the model that bench/train_lm.py trained for a few steps, kept in runs."""
    import train_lm

    arguments = ["--size=tiny", "--device=cpu", "--steps=10", f"--data={text}"]
    assert train_lm.main(arguments) == 0
    return ["--model=gpt", f"--data={text}", "--out=out"]


def test_the_last_layer_of_the_trained_model_is_solved_further(program, trained, capsys) -> None:
    kept = Path("runs/train_lm/checkpoint.pt").read_bytes()
    assert program.main([*trained, "--tokens=640", "--newton-steps=3"]) == 0
    assert "AdamW left" in capsys.readouterr().out
    found = json.loads(Path("out/lm_head_gpt.json").read_text())["results"]
    losses = [step["loss"] for step in found["steps"]]
    assert found["tokens"] == 640
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    first, last = found["between"][0], found["between"][-1]
    assert first["held_out_loss"] == pytest.approx(found["steps"][0]["held_out_loss"])
    assert last["held_out_loss"] == pytest.approx(found["steps"][-1]["held_out_loss"])
    assert found["best"]["choosing_loss"] <= first["choosing_loss"]
    assert Path("runs/train_lm/checkpoint.pt").read_bytes() == kept


def test_a_model_of_another_text_is_refused(program, trained, text, capsys) -> None:
    text.write_text(text.read_text()[::-1])
    assert program.main(trained) == 2
    assert "was trained on another text than --data" in capsys.readouterr().err
    assert os.listdir("out") == []
