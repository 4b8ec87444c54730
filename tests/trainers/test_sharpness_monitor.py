"""SharpnessMonitor as a callback of Lightning and of transformers: what a plain loop measures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fusedstep
from fusedstep.dynamics import SharpnessMonitor
from tests.support.training_loop import batches, examples, loss_of, network

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported


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

    x, y = examples(32)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)

    base: Any = lightning.LightningModule

    class Module(base):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

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
    net = network()
    opt = fusedstep.AdamW(net.parameters(), lr=0.01)
    losses = [lambda batch=batch: loss_of(net, batch) for batch in batches(8)]
    expected = expected_history(lambda: loss_of(net, (x, y)), opt, losses, accumulate)
    assert len(expected) == 4 // accumulate
    assert monitor.history == expected


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the trainers extra")
    pytest.importorskip("accelerate", reason="needs the trainers extra")

    x, y = examples(32)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

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

    base: Any = transformers.Trainer

    class Trainer(base):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    dataset = [{"inputs": a, "labels": b} for a, b in zip(x, y, strict=True)]
    Trainer(
        model, arguments, train_dataset=dataset,
        optimizers=(optimizer, None), callbacks=[monitor.transformers_callback()],
    ).train()  # fmt: skip
    net = network()
    opt = fusedstep.AdamW(net.parameters(), lr=0.01)
    losses = [lambda batch=batch: loss_of(net, batch) for batch in batches(8)]
    expected = expected_history(lambda: loss_of(net, (x, y)), opt, losses, 1)
    assert [m.step for m in monitor.history] == [2, 4, 6, 8]
    assert monitor.history == expected
