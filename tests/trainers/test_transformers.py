"""transformers.Trainer with a fused optimizer that clips: the bits of a plain loop.

Give the Trainer `max_grad_norm=0` and the optimizer `max_norm`: an optimizer, or its class and
arguments. A class gets the Trainer's groups and weight decay, but not its learning rate. No model
is fetched: a GPT-2 of a few thousand weights is made from its configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR

import fusedstep
from tests.support.optimizers import Kind, assert_same_run, every_kind

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported
transformers = pytest.importorskip("transformers", reason="needs the trainers extra: transformers")
accelerate = pytest.importorskip("accelerate", reason="needs the trainers extra: accelerate")
TrainerCallback: Any = transformers.TrainerCallback

STEPS, BATCH, LENGTH, VOCABULARY = 6, 4, 8, 31


def model() -> Any:
    """The same random weights every time."""
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": LENGTH}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(**sizes, **tokens, **no_dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config)


def texts() -> tuple[Tensor, Tensor]:
    """Tokens [STEPS * BATCH, LENGTH], and as labels without the first, which nothing predicts."""
    shape = (STEPS * BATCH, LENGTH)
    tokens = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[:, 0] = -100
    return tokens, labels


class Norms(TrainerCallback):
    """Keeps the norm of every step; callbacks see the optimizer inside accelerate's wrapper."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        self.values.append(float(optimizer.optimizer.grad_norm))


def exponential(optimizer: Optimizer) -> Any:
    return ExponentialLR(optimizer, 0.8)


def fit(net: Any, given: dict[str, Any], folder: Path, resume: Path | None, **options: Any) -> Any:
    """The Trainer, done, `given` its optimizer; and the norms of the steps."""
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=BATCH, use_cpu=True,
        num_train_epochs=1, train_sampling_strategy="sequential", disable_tqdm=True,
        **{"max_grad_norm": 0.0, "save_strategy": "no"} | options,
    )  # fmt: skip
    data = [{"input_ids": x, "labels": y} for x, y in zip(*texts(), strict=True)]
    norms = Norms()
    trainer = transformers.Trainer(net, arguments, train_dataset=data, callbacks=[norms], **given)
    trainer.train(resume_from_checkpoint=resume)
    assert isinstance(trainer.optimizer, accelerate.optimizer.AcceleratedOptimizer)
    return trainer, norms.values


def train(
    make: Callable[..., Optimizer], folder: Path, resume: Path | None = None, **options: Any
) -> tuple[Optimizer, list[float]]:
    """The optimizer after the Trainer is done, and the norms of its steps."""
    net = model()
    optimizer = make(net.parameters())
    given = {"optimizers": (optimizer, exponential(optimizer))}
    return optimizer, fit(net, given, folder, resume, **options)[1]


def plain_loop(
    make: Callable[..., Optimizer],
    autocast: torch.dtype | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    params_of: Callable[[Any], Any] = nn.Module.parameters,
    rates: Callable[[Optimizer], Any] = exponential,
) -> tuple[Optimizer, list[float]]:
    """What the Trainer must come to, and the norms on the way."""
    net = model()
    optimizer = make(params_of(net))
    schedule = rates(optimizer)
    norms = []
    tokens, labels = (tensor.split(BATCH) for tensor in texts())
    count = torch.tensor(accumulate * BATCH * (LENGTH - 1))  # tokens that are predicted in a step
    for i, (inputs, targets) in enumerate(zip(tokens, labels, strict=True)):
        with torch.autocast("cpu", autocast) if autocast else nullcontext():
            loss = net(input_ids=inputs, labels=targets, num_items_in_batch=count).loss
        loss.backward()
        if (i + 1) % accumulate:
            continue
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        norms.append(float(optimizer.grad_norm))
    return optimizer, norms


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
@every_kind
def test_train_is_the_plain_loop(
    kind: Kind, accumulate: int, precision: str, tmp_path: Path
) -> None:
    make = partial(kind.ours, max_norm=0.5)
    bf16 = precision == "bf16"
    options = {"bf16": bf16, "gradient_accumulation_steps": accumulate}
    optimizer, norms = train(make, tmp_path, **options)
    expected, expected_norms = plain_loop(make, torch.bfloat16 if bf16 else None, accumulate)
    assert_same_run(optimizer, expected)
    assert norms == expected_norms
    assert max(norms) > 0.5  # the clip did something


@every_kind
def test_resumed_training_continues_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    make = partial(kind.ours, max_norm=0.5)
    whole, norms = train(make, tmp_path, save_strategy="steps", save_steps=STEPS // 2)
    resumed, rest = train(make, tmp_path, resume=tmp_path / f"checkpoint-{STEPS // 2}")
    assert_same_run(resumed, whole)
    assert rest == norms[STEPS // 2 :]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@every_kind
def test_class_and_arguments_are_the_plain_loop(kind: Kind, precision: str, tmp_path: Path) -> None:
    """The Trainer makes the groups: biases and norms do not decay. Its own learning rate is unused.

    The second Trainer goes on from a checkpoint of the first.
    """
    every = {"save_strategy": "steps", "save_steps": STEPS // 2, "bf16": precision == "bf16"}
    chosen = type(kind.ours([nn.Parameter(torch.zeros(1))])), kind.options | {"max_norm": 0.5}
    rules = {"weight_decay": 0.3, "learning_rate": 1e3, "lr_scheduler_type": "linear"}
    last = None
    for resume in (None, tmp_path / f"checkpoint-{STEPS // 2}"):
        given = {"optimizer_cls_and_kwargs": (chosen[0], dict(chosen[1]))}
        trainer, norms = fit(model(), given, tmp_path, resume, **rules, **every)
        last = last or (trainer.optimizer.optimizer, norms)
    resumed = trainer.optimizer.optimizer
    assert_same_run(resumed, last[0])
    assert norms == last[1][STEPS // 2 :]

    def linear(optimizer: Optimizer) -> Any:
        return transformers.get_scheduler("linear", optimizer, 0, STEPS)

    expected, expected_norms = plain_loop(
        partial(kind.ours, max_norm=0.5), torch.bfloat16 if precision == "bf16" else None,
        params_of=partial(fusedstep.param_groups, weight_decay=0.3), rates=linear,
    )  # fmt: skip
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.3, 0.0]
    assert_same_run(resumed, expected)
    assert last[1] == expected_norms
    assert max(expected_norms) > 0.5


@every_kind
def test_clip_of_the_trainer_comes_before_ours(kind: Kind, tmp_path: Path) -> None:
    """With both set, `.grad` is rewritten first: the norm that is left is what our clip sees."""
    make = partial(kind.ours, max_norm=0.25)
    optimizer, norms = train(make, tmp_path, max_grad_norm=0.5)
    expected, expected_norms = plain_loop(make, clip=0.5)
    assert_same_run(optimizer, expected)
    assert norms == expected_norms == pytest.approx([0.5] * STEPS, rel=1e-4)
