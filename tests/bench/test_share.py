"""The parts of a training step: both optimizers train the same, every part counts, one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bench import share
from bench.places import OURS, PARTS, places
from bench.record import read_csv

CPU = torch.device("cpu")


def test_the_cases_are_the_models_that_are_trained() -> None:
    found = {case.name: case for case in share.cases()}
    assert len(found) == len(share.TASKS) * len(PARTS)
    assert found["share/mlp-batch-32/optimizer"].elements == 784 * 512 + 512 * 256 + 256 * 10 + 778
    assert found["share/mlp-batch-32/optimizer"].least_bytes == 32 * 535_818
    for task in share.TASKS:
        training = share.Training(task, share.UPDATES[OURS], CPU)
        case = found[f"share/{task.name}/forward"]
        assert case.elements == sum(param.numel() for param in training.model.parameters())


def test_a_part_is_less_than_the_whole_step(monkeypatch) -> None:
    clock = iter(range(100))  # a reading a mark: a step has four
    monkeypatch.setattr(share.Training, "_now", lambda self: 2 ** next(clock))
    training = share.Training(share.mlp(2), share.UPDATES[OURS], CPU)
    before = [param.clone() for param in training.model.parameters()]
    assert training.seconds("forward", 1) == 2**1 - 2**0
    assert training.seconds("backward", 1) == 2**6 - 2**5
    assert training.seconds("optimizer", 2) == 2**11 - 2**10 + 2**15 - 2**14
    assert all(param.grad is None for param in training.model.parameters())
    assert not any(map(torch.equal, before, training.model.parameters()))


def test_a_run_ends_in_a_sentence(tmp_path: Path, capsys) -> None:
    pytest.importorskip("rich", reason="needs the bench extra: rich")
    csv, threads = tmp_path / "bench.csv", torch.get_num_threads()
    options = ["--seconds", "0.001", "--threads", "1", "--device", "cpu", "--peers", "torch"]
    options += ["--out", str(csv), "--cases", "share/mlp-batch-32/*"]
    assert share.run(options) == 0
    torch.set_num_threads(threads)
    sentence = capsys.readouterr().out.strip().split("\n")[-1]
    shares = r"clip \+ step were \d+% of the step, are \d+%; the whole step is \d+\.\d\dx"
    assert re.fullmatch(f"mlp-batch-32: {shares}", sentence)
    rows = read_csv(csv)
    assert [(row["case"].split("/")[-1], row["provider"]) for row in rows] == [
        (part, provider) for part in PARTS for provider in share.UPDATES
    ]
    assert all(float(row["check"]) < 1e-3 for row in rows if row["provider"] != OURS)
    (place,) = places(rows)
    (training,) = place.trainings()
    assert training.sentence() == sentence
