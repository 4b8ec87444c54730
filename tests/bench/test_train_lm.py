"""The command line of bench.train_lm: whole runs, Ctrl-C, --resume, and what it refuses."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")
pytest.importorskip("rich", reason="needs the bench extra: rich")
pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")

from bench import train_lm
from bench.record import ROOT
from bench.studies.language_model.comparison import Comparison

TINY = ["--size", "tiny", "--device", "cpu"]


def test_a_whole_run_learns_and_leaves_a_table_a_figure_and_its_numbers(text, capsys):
    assert train_lm.main([*TINY, "--data", str(text)]) == 0
    shown = capsys.readouterr().out
    for words in ("validation loss", "clip + step, median ms", "tokens/s", "step 40/40", "ratio"):
        assert words in shown

    out = Path("runs/train_lm")
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint.pt", "losses.png", "results.json"]
    assert (out / "losses.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((out / "results.json").read_text())
    found, steps = kept["results"], kept["steps"]
    assert [step["step"] for step in steps] == list(range(1, 41))
    assert kept["settings"]["layers"] == 2
    assert kept["machine"]["torch"] == torch.__version__
    assert found["uniform_guess_loss"] == math.log(512)
    assert set(found["validation_loss"]) == {"torch", "fusedstep"}
    for loss in found["validation_loss"].values():
        assert loss < found["uniform_guess_loss"] - 1
    assert f"{found['validation_loss']['torch']:.4f}" in shown
    assert 0 <= found["largest_parameter_difference"] < 0.1
    medians = found["median_optimizer_ms"]
    assert found["optimizer_ratio"] == medians["torch"] / medians["fusedstep"]
    assert all(step["torch"]["optimizer_seconds"] < step["torch"]["seconds"] for step in steps)


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def test_an_interrupted_run_resumes_bit_for_bit(text, monkeypatch, capsys):
    """Interrupted twice, by either signal, in the middle of a step, which is still finished."""
    arguments = [*TINY, f"--data={text}", "--steps=12", "--dropout=0.1", "--save-every=5"]
    advance = Comparison.advance
    signals = {6: signal.SIGINT, 9: signal.SIGTERM}
    handlers = [signal.getsignal(number) for number in signals.values()]  # a shell may ignore them

    def interrupted(self):
        if len(self.steps) in signals:
            os.kill(os.getpid(), signals[len(self.steps)])
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "advance", interrupted)
        for done, resume in ((7, []), (10, ["--resume"])):
            assert train_lm.main([*arguments, "--out", "cut", *resume]) == 130
            shown = capsys.readouterr().out
            assert f"Stopped after step {done} of 12; the same command with --resume" in shown
            assert os.listdir("cut") == ["checkpoint.pt"]
            assert [signal.getsignal(number) for number in signals.values()] == handlers

    assert train_lm.main([*arguments, "--out", "cut", "--resume"]) == 0
    assert "Continuing after step 10." in capsys.readouterr().out
    assert train_lm.main([*arguments, "--out", "straight"]) == 0
    cut, straight = (
        torch.load(f"{folder}/checkpoint.pt", weights_only=True)["comparison"]
        for folder in ("cut", "straight")
    )
    assert len(cut["steps"]) == len(straight["steps"]) == 12
    assert same(cut["runs"], straight["runs"])
    assert same(cut["sampler"], straight["sampler"])
    assert cut["validations"] == straight["validations"]


def test_a_finished_run_resumed_shows_its_results_again(text, capsys):
    arguments = [*TINY, "--data", str(text), "--steps", "2"]
    assert train_lm.main(arguments) == 0
    before = Path("runs/train_lm/results.json").read_text()
    Path("runs/train_lm/results.json").unlink()
    assert train_lm.main([*arguments, "--resume"]) == 0
    assert Path("runs/train_lm/results.json").read_text() == before


@pytest.mark.slow
def test_ctrl_c_in_a_process_of_its_own(text):
    arguments = [*TINY, "--data", str(text), "--steps", "100000", "--save-every", "1"]
    path = os.pathsep.join([str(ROOT), *sys.path])
    running = subprocess.Popen(
        [sys.executable, "-m", "bench.train_lm", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not Path("runs/train_lm/checkpoint.pt").exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    shown, errors = running.communicate()
    assert (running.returncode, errors) == (130, "")
    assert "the same command with --resume continues" in shown
    assert os.listdir("runs/train_lm") == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "-3"], "argument --steps: must be an integer from 1 to 2^31 - 1, got -3"),
        (["--steps", "many"], "argument --steps: must be an integer from 1 to 2^31 - 1, got many"),
        (["--steps", "9" * 400], "argument --steps: must be an integer from 1 to 2^31 - 1, got 99"),
        (
            ["--micro-batch", "65537"],
            "argument --micro-batch: must be a number of sequences from 1 to 65536, got 65537",
        ),
        (["--lr", "nan"], "argument --lr: must be a finite number above 0, got nan"),
        (["--dropout", "1"], "argument --dropout: must be a number from 0 up to but not 1, got 1"),
        (["--seed", "-1"], "argument --seed: must be an integer from 0 to 2^63 - 1, got -1"),
        (["--size", "huge"], "argument --size: invalid choice: 'huge'"),
        (["--what"], "unrecognized arguments: --what"),
        (["--data", "missing"], "--data must exist, got missing"),
        (["--data", "line\nend\udce9"], r"--data must exist, got line\nend\udce9"),
        (["--data", "short.txt"], "--data must hold more text: its training part has "),
        (["--data", "empty.txt"], "--data must hold some UTF-8 text, got none in empty.txt"),
        (["--data", "latin.txt"], "--data must be UTF-8 text, got latin.txt: "),
        (["--out", "short.txt"], "--out: short.txt cannot be made: File exists"),
        (["--resume"], "--resume: there is no checkpoint runs/train_lm/checkpoint.pt"),
        (
            ["--resume", "--out", "other"],
            "--resume: other/checkpoint.pt is damaged or not a checkpoint: ",
        ),
        (
            ["--lr", "1e30"],
            "the loss of the fusedstep run is nan at step 2; a smaller",
        ),
        (["--steps", "1", "--lr", "1e30"], "the validation loss of the torch run is nan at step 1"),
        (["--steps", "1", "--out", "taken"], "the results in taken cannot be written: "),
    ],
)
def test_bad_input_gives_one_sentence_and_status_2(text, capsys, arguments, sentence):
    Path("short.txt").write_text("A text that is too short.")
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes("\u00e9t\u00e9".encode("latin-1"))
    Path("taken/results.json").mkdir(parents=True)
    Path("other").mkdir()
    Path("other/checkpoint.pt").write_text("something else")
    assert train_lm.main([*TINY, "--data", str(text), *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"train_lm: {sentence}")
    assert errors.count("\n") == 1


def test_what_else_lies_in_a_folder_is_named_and_the_text_is_trained_on(text, capsys):
    folder = Path("texts")
    folder.mkdir()
    text.rename(folder / os.fsdecode(b"\xe9.txt"))  # not UTF-8
    (folder / "README").write_text("word")
    os.mkfifo(folder / os.fsdecode(b"p\xefpe\n.txt"))
    (folder / "table.bin").write_bytes(b"\0" * 100)
    assert train_lm.main([*TINY, "--data", str(folder), "--steps", "1"]) == 0
    shown, errors = capsys.readouterr()
    named = r"Left out what is not a file of UTF-8 text: p\udcefpe\n.txt and 1 more."
    assert named in shown
    assert errors == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(text, capsys):
    assert train_lm.main(["--device", "cuda", "--data", str(text)]) == 2
    assert "--device cuda cannot be used: " in capsys.readouterr().err


def test_other_settings_than_the_checkpoint_has_are_refused(text, capsys):
    arguments = [*TINY, "--data", str(text), "--steps", "2"]
    assert train_lm.main(arguments) == 0
    kept = Path("runs/train_lm/checkpoint.pt").read_bytes()
    assert train_lm.main([*arguments, "--resume", "--seed", "1", "--batch", "3"]) == 2
    expected = "was written with batch 6 where this run has 3, seed 0 where this run has 1\n"
    assert capsys.readouterr().err.endswith(expected)
    assert Path("runs/train_lm/checkpoint.pt").read_bytes() == kept
