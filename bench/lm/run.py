"""One training run: a model, the optimizer that moves it, and the random numbers it draws."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fusedstep

from .randomness import Randomness
from .recipe import BETAS, EPS, MAX_NORM, WEIGHT_DECAY, Recipe

Update = Callable[[], Tensor]  # clips and steps; gives the norm before clipping, 0-d


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


def fused_update(model: nn.Module) -> tuple[torch.optim.Optimizer, Update]:
    """This project's way: one optimizer, which clips as it reads the gradients."""
    groups = fusedstep.param_groups(model, WEIGHT_DECAY)
    optimizer = fusedstep.AdamW(groups, betas=BETAS, eps=EPS, max_norm=MAX_NORM)

    def update() -> Tensor:
        optimizer.step()
        return optimizer.grad_norm

    return optimizer, update


class Run:
    """Trains `model` by the update that `make_update` makes for it."""

    def __init__(self, model: nn.Module, make_update: Callable, recipe: Recipe):
        self.device = torch.device(recipe.device)
        self.model = model.to(self.device)
        self.optimizer, self._update = make_update(self.model)
        self._randomness = Randomness(recipe.seed, self.device)
        self._micro_batch = recipe.micro_batch
        self._reduced_precision = recipe.precision == "bfloat16"

    def step(self, inputs: Tensor, targets: Tensor, rate: float) -> Measured:
        """One optimizer step on a batch, int64 [sequences, context], in micro-batches.

        Each micro-batch counts by its share of the batch, so that a short last one weighs what it
        should and the gradient is that of the batch's mean loss.
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
        loss = sum(share * loss.item() for loss, share in self._losses(inputs, targets))
        self.model.train()
        return loss

    def state_dict(self) -> dict:
        """All that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "randomness": self._randomness.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
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
