"""SharpnessMonitor in a plain loop and inside the trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fusedstep
from fusedstep.dynamics import SharpnessMonitor, preconditioned_sharpness, stability_threshold
from tests.dynamics.problems import network
from tests.support.refusals import refuses


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop"])
def test_a_plain_loop(name: str) -> None:
    model, loss_fn = network(torch.float64)
    opt = getattr(fusedstep, name)(model.parameters(), lr=0.01)
    monitor = SharpnessMonitor(loss_fn, opt, every=3)
    expected = []
    for step in range(1, 11):
        opt.zero_grad()
        loss_fn().backward()
        opt.step()
        measured = monitor.step()
        assert (measured is None) == (step % 3 != 0)
        if measured is not None:
            assert measured is monitor.history[-1]
            expected.append((step, preconditioned_sharpness(opt, loss_fn)))
            assert measured.threshold == stability_threshold(opt)
    assert [m.step for m in monitor.history] == [3, 6, 9]
    assert [m.sharpness for m in monitor.history] == pytest.approx(
        [value for _, value in expected], rel=1e-10
    )


def test_it_does_not_change_the_run() -> None:
    runs = []
    for watched in (False, True):
        model, loss_fn = network(torch.float32)
        opt = fusedstep.Adam(model.parameters(), lr=0.01, state_dtype="int8")
        monitor = SharpnessMonitor(loss_fn, opt, every=1)
        for _ in range(5):
            opt.zero_grad()
            loss_fn().backward()
            opt.step()
            if watched:
                monitor.step()
        runs.append(list(model.parameters()))
    assert len(monitor.history) == 5
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


def test_warm_starts_take_fewer_products() -> None:
    model, loss_fn = network(torch.float64)
    calls = []

    def counted():
        calls.append(1)
        return loss_fn()

    opt = fusedstep.SGD(model.parameters(), lr=1e-4)
    monitor = SharpnessMonitor([counted, counted], opt, every=1)
    counts = []
    for _ in range(3):
        calls.clear()
        monitor.step()
        counts.append(len(calls))
        opt.zero_grad()
        loss_fn().backward()
        opt.step()
    assert max(counts[1:]) <= counts[0]


def test_measures_at_once_and_follows_a_loops_own_count() -> None:
    model, loss_fn = network(torch.float64)
    opt = fusedstep.SGD(model.parameters(), lr=0.01)
    monitor = SharpnessMonitor(loss_fn, opt, every=5)
    assert monitor.measure().step == 0
    assert monitor.reached(4) is None
    assert monitor.reached(5).step == 5
    assert monitor.reached(5) is None  # as while gradients accumulate
    assert [m.step for m in monitor.history] == [0, 5]


def test_refusals() -> None:
    opt = fusedstep.Adam([nn.Parameter(torch.ones(2))])
    with refuses("SharpnessMonitor", "every", "be at least 1", "0", ValueError):
        SharpnessMonitor(lambda: None, opt, every=0)
    must = "be Adam, AdamW, RMSprop, SGD or Adagrad, of fusedstep or torch"
    with refuses("SharpnessMonitor", "optimizer", must, "Lion", TypeError):
        SharpnessMonitor(lambda: None, fusedstep.Lion([nn.Parameter(torch.ones(2))]))
    must = r"have taken a step with params\[0\]"
    with refuses("SharpnessMonitor", "optimizer", must, "no step", ValueError):
        SharpnessMonitor(lambda: None, opt).measure()
    with refuses("SharpnessMonitor", "optimizer", ".*", "NoneType", TypeError):
        SharpnessMonitor(lambda: None).measure()


def expected_history(loss_fn: Any, opt: Any, losses: list[Any], accumulate: int) -> list[Any]:
    """What a plain loop measures after every second step."""
    monitor = SharpnessMonitor(loss_fn, opt, every=2)
    for i, loss in enumerate(losses):
        (loss() / accumulate).backward()
        if (i + 1) % accumulate == 0:
            opt.step()
            monitor.step()
            opt.zero_grad()
    return monitor.history


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning(accumulate: int, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="needs the trainers extra")
    from tests.support.training_loop import batches, examples, loss_of
    from tests.support.training_loop import network as small_network

    x, y = examples(32)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_network()

        def training_step(self, batch: Any, _: int) -> Any:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> Any:
            return fusedstep.AdamW(self.parameters(), lr=0.01)

    module = Module()
    monitor = SharpnessMonitor(lambda: loss_of(module.net, (x, y)), every=2)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        accumulate_grad_batches=accumulate, callbacks=[monitor.lightning_callback()],
    )  # fmt: skip
    trainer.fit(module, data)
    net = small_network()
    opt = fusedstep.AdamW(net.parameters(), lr=0.01)
    losses = [lambda batch=batch: loss_of(net, batch) for batch in batches(8)]
    expected = expected_history(lambda: loss_of(net, (x, y)), opt, losses, accumulate)
    assert len(expected) == 4 // accumulate
    assert monitor.history == expected


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the trainers extra")
    pytest.importorskip("accelerate", reason="needs the trainers extra")
    from tests.support.training_loop import batches, examples, loss_of
    from tests.support.training_loop import network as small_network

    x, y = examples(32)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_network()

        def forward(self, inputs: Any, labels: Any, **_: Any) -> Any:
            return {"loss": loss_of(self.net, (inputs, labels))}

    model = Model()
    optimizer = fusedstep.AdamW(model.parameters(), lr=0.01)
    monitor = SharpnessMonitor(lambda: loss_of(model.net, (x, y)), every=2)
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=8, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        save_strategy="no", max_grad_norm=0, disable_tqdm=True, lr_scheduler_type="constant",
        remove_unused_columns=False,
    )  # fmt: skip

    class Trainer(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    Trainer(
        model, arguments, train_dataset=[{"inputs": a, "labels": b} for a, b in zip(x, y)],
        optimizers=(optimizer, None), callbacks=[monitor.transformers_callback()],
    ).train()  # fmt: skip
    net = small_network()
    opt = fusedstep.AdamW(net.parameters(), lr=0.01)
    losses = [lambda batch=batch: loss_of(net, batch) for batch in batches(8)]
    expected = expected_history(lambda: loss_of(net, (x, y)), opt, losses, 1)
    assert [m.step for m in monitor.history] == [2, 4, 6, 8]
    assert monitor.history == expected
