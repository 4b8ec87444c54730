"""Runs side by side, from the same weights, on the same batches, each by its own update."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from .corpus import Corpus, windows
from .errors import InputError
from .gpt import GPT
from .recipe import Recipe
from .run import Run, fused_update, torch_update
from .sampler import Sampler

UPDATES = {"torch": torch_update, "fusedstep": fused_update}
NAMES = tuple(UPDATES)
VALIDATIONS = 10  # over a whole training, beside the one before the first step


class Comparison:
    """Takes runs through a recipe, step by step, and keeps what was measured.

    `updates`: for each run's name what makes its update (see Run); PyTorch's and ours by default.
    `steps` holds a record for each step: its number from 1, the tokens of its batch and of all so
    far, the learning rate, and under each run's name what it measured (run.Measured).
    `validations` holds the number of steps taken and, under each run's name, its loss.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, updates: Mapping[str, Callable] = UPDATES):
        self.recipe = recipe
        self._inputs, self._targets = windows(corpus.training, recipe.shape.context, "training")
        inputs, targets = windows(corpus.validation, recipe.shape.context, "validation")
        some = torch.linspace(0, len(inputs) - 1, min(len(inputs), recipe.validation_windows))
        self._validation = self._to_device(inputs, targets, some.long())

        with torch.random.fork_rng(devices=[]):  # the model is made on the CPU
            torch.manual_seed(recipe.seed)
            model = GPT(recipe.shape)
        self.runs = {
            name: Run(copy.deepcopy(model), make_update, recipe)
            for name, make_update in updates.items()
        }
        self.sampler = Sampler(len(self._inputs), recipe.seed)
        self.steps: list[dict] = []
        self.validations: list[dict] = []

    @property
    def finished(self) -> bool:
        """Whether every step of the recipe was taken."""
        return len(self.steps) >= self.recipe.steps

    def advance(self) -> dict:
        """One step of each run on the same batch, taking turns in going first; gives its record.

        Raises InputError where a loss is not finite: nothing after it would mean anything.
        """
        done = len(self.steps)
        if done == 0:
            self._validate()
        tokens = self.steps[-1]["tokens"] if self.steps else 0
        size = self.recipe.batch_size(tokens)
        inputs, targets = self._to_device(self._inputs, self._targets, self.sampler.take(size))
        record = {
            "step": done + 1,
            "tokens": tokens + inputs.numel(),
            "batch_tokens": inputs.numel(),
            "rate": self.recipe.rate(done),
        }
        for name in self.runs if done % 2 == 0 else reversed(self.runs):
            measured = self.runs[name].step(inputs, targets, record["rate"])
            if not math.isfinite(measured.loss):
                raise InputError(
                    f"the loss of the {name} run is {measured.loss} at step {done + 1}; "
                    f"a smaller --lr may help"
                )
            record[name] = asdict(measured)
        self.steps.append(record)
        if self.finished or len(self.steps) % max(1, self.recipe.steps // VALIDATIONS) == 0:
            self._validate()
        return record

    def largest_difference(self) -> tuple[float, str]:
        """The largest absolute difference between PyTorch's and our parameters, and whose it is.

        After one step it is rounding. It grows fastest where the true gradient is zero, as in the
        biases of attention keys: Adam makes whole steps of what rounding leaves there.
        """
        ours = dict(self.runs["fusedstep"].model.named_parameters())
        theirs = self.runs["torch"].model.named_parameters()
        return max(((p - ours[name]).abs().max().item(), name) for name, p in theirs)

    def state_dict(self) -> dict:
        """All that the next step and the report depend on."""
        return {
            "runs": {name: run.state_dict() for name, run in self.runs.items()},
            "sampler": self.sampler.state_dict(),
            "steps": self.steps,
            "validations": self.validations,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go back to where `state_dict` was called, with the same recipe and text."""
        for name, run in self.runs.items():
            run.load_state_dict(state["runs"][name])
        self.sampler.load_state_dict(state["sampler"])
        self.steps, self.validations = list(state["steps"]), list(state["validations"])

    def _validate(self) -> None:
        losses = {name: run.evaluate(*self._validation) for name, run in self.runs.items()}
        self.validations.append({"step": len(self.steps), **losses})

    def _to_device(self, inputs: Tensor, targets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(part[rows].to(self.recipe.device, torch.int64) for part in (inputs, targets))
