"""How a model is trained: the recipe and its sizes, the updates, and one run of them.

The recipe's constants are GPT-3's (Brown et al. 2020, appendix B).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fusedstep
from bench.studies.language_model.model import GPT, Shape
from fusedstep import schedules

BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.1
MAX_NORM = 1.0
FINAL_RATE = 0.1  # of the peak
WARMUP = 0.1  # of the steps
RAMP = 0.1  # of the tokens
Update = Callable[[], Tensor]  # clips and steps; returns the norm before clipping, 0-d
# Makes the optimizer of a model, and its update.
MakeUpdate = Callable[[nn.Module], tuple[torch.optim.Optimizer, Update]]


@dataclass(frozen=True)
class Recipe:
    """What is trained and how; batches count sequences of `shape.context` tokens."""

    shape: Shape
    steps: int
    first_batch: int
    batch: int
    micro_batch: int
    peak_rate: float
    validation_windows: int
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return schedules.warmup_cosine(
            step,
            max_lr=self.peak_rate,
            min_lr=FINAL_RATE * self.peak_rate,
            warmup_steps=max(1, round(WARMUP * self.steps)),
            max_steps=self.steps,
        )

    def batch_size(self, tokens: int) -> int:
        """Sequences in the batch that follows after `tokens` tokens."""
        return schedules.batch_size_ramp(
            tokens,
            start=min(self.first_batch, self.batch),
            end=self.batch,
            ramp_tokens=round(RAMP * self.steps * self.batch * self.shape.context),
        )

    def flat(self) -> dict[str, int | float | str]:
        """Every setting by its name, the shape's among them."""
        settings = asdict(self)
        return {**settings.pop("shape"), **settings}


SIZES = {
    # Seconds: to try the machinery out.
    "tiny": Recipe(
        Shape(vocabulary=512, context=32, layers=2, heads=2, width=32),
        steps=40,
        first_batch=2,
        batch=6,
        micro_batch=4,
        peak_rate=1e-2,
        validation_windows=16,
    ),
    # About two minutes for both runs on two CPU cores.
    "small": Recipe(
        Shape(vocabulary=4096, context=128, layers=4, heads=4, width=128),
        steps=500,
        first_batch=4,
        batch=12,
        micro_batch=8,
        peak_rate=1.5e-3,
        validation_windows=64,
    ),
    # GPT-2 124M, for a GPU. The tokenizer is trained to GPT-2's 50257 tokens; the embedding has
    # 50304 rows, a multiple of 128, which keeps the largest matrix product on aligned tiles.
    "gpt2": Recipe(
        Shape(vocabulary=50304, context=1024, layers=12, heads=12, width=768),
        steps=300,
        first_batch=16,
        batch=64,
        micro_batch=16,
        peak_rate=6e-4,
        validation_windows=64,
    ),
}
TOKENS = {"tiny": 512, "small": 4096, "gpt2": 50257}


@dataclass(frozen=True)
class Measured:
    """One step: mean loss in nats, gradient norm before clipping, times in seconds."""

    loss: float
    norm: float
    seconds: float
    optimizer_seconds: float


def torch_update(model: nn.Module) -> tuple[torch.optim.Optimizer, Update]:
    """PyTorch's own way: clip_grad_norm_, then the fused AdamW."""
    groups = fusedstep.param_groups(model, WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS, fused=True)
    parameters = [p for group in groups for p in group["params"]]  # walked once, not every step

    def update() -> Tensor:
        norm = nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        return norm

    return optimizer, update


def fused_update(model: nn.Module, **options: Any) -> tuple[torch.optim.Optimizer, Update]:
    """This project's way: one optimizer, which clips as it reads the gradients."""
    groups = fusedstep.param_groups(model, WEIGHT_DECAY)
    optimizer = fusedstep.AdamW(groups, betas=BETAS, eps=EPS, max_norm=MAX_NORM, **options)

    def update() -> Tensor:
        optimizer.step()
        assert optimizer.grad_norm is not None, "max_norm is set"
        return optimizer.grad_norm

    return optimizer, update


class Randomness:
    """A separate stream of torch's random numbers, in a program where others draw too.

    Inside `with r.own():` torch's generators go on where the last such block ended.

    Two runs with the same seed that take turns draw the same numbers, whoever goes first.
    """

    def __init__(self, seed: int, device: torch.device):
        self._cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(self._cuda):
            torch.manual_seed(seed)
            self._state = self._read()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Draw from this stream; the program's own generators are as before afterwards."""
        with torch.random.fork_rng(self._cuda):
            self._write(self._state)
            yield
            self._state = self._read()

    def state_dict(self) -> dict[str, Tensor]:
        """The generators' states, uint8 on the CPU."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to where `state_dict` was called, on the same kind of device."""
        self._state = dict(state)

    def _read(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        for device in self._cuda:
            state["cuda"] = torch.cuda.get_rng_state(device)
        return state

    def _write(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        for device in self._cuda:
            torch.cuda.set_rng_state(state["cuda"], device)


class Run:
    """Trains `model` by the update that `make_update` returns for it."""

    def __init__(self, model: GPT, make_update: MakeUpdate, recipe: Recipe):
        self.device = torch.device(recipe.device)
        self.model = model.to(self.device)
        self.optimizer, self._update = make_update(self.model)
        self._randomness = Randomness(recipe.seed, self.device)
        self._micro_batch = recipe.micro_batch
        self._reduced_precision = recipe.precision == "bfloat16"

    def step(self, inputs: Tensor, targets: Tensor, rate: float) -> Measured:
        """One optimizer step on a batch, int64 [sequences, context], in micro-batches.

        Each micro-batch is weighted by its share of the batch, so the gradient is that of the
        batch's mean loss even if the last micro-batch is shorter.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        start = self._now()
        loss = torch.zeros((), device=self.device)
        with self._randomness.own():
            for part_loss, share in self._losses(inputs, targets):
                (share * part_loss).backward()
                loss += share * part_loss.detach()
        before = self._now()
        norm = self._update()
        after = self._now()
        self.optimizer.zero_grad()
        end = self._now()
        return Measured(loss.item(), norm.item(), end - start, after - before)

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        """Mean loss in nats over int64 [sequences, context], without dropout."""
        self.model.eval()
        loss = sum(share * part.item() for part, share in self._losses(inputs, targets))
        self.model.train()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "randomness": self._randomness.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called, in a run of the same recipe."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._randomness.load_state_dict(state["randomness"])

    def _losses(self, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Mean loss of each micro-batch and its share of the batch."""
        parts = zip(inputs.split(self._micro_batch), targets.split(self._micro_batch), strict=True)
        for part_inputs, part_targets in parts:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced_precision):
                loss = self.model(part_inputs, part_targets)
            yield loss, len(part_inputs) / len(inputs)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
