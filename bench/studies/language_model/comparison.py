"""Runs side by side: from the same weights, on the same batches, each by its own update."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bench.command import InputError
from bench.studies.language_model.corpus import Corpus, Sampler, Windows, windows
from bench.studies.language_model.model import GPT
from bench.studies.language_model.training import (
    MakeUpdate,
    Measured,
    Recipe,
    Run,
    fused_update,
    torch_update,
)

UPDATES: Mapping[str, MakeUpdate] = {"torch": torch_update, "fusedstep": fused_update}
NAMES = tuple(UPDATES)
VALIDATIONS = 10  # over a whole training, not counting the one before the first step


@dataclass(frozen=True)
class Step:
    """One step of every run: its number from 1, its batch, and what each run measured."""

    step: int
    tokens: int  # in all batches so far
    batch_tokens: int
    rate: float
    runs: Mapping[str, Measured]

    def flat(self) -> dict[str, Any]:
        """As files hold it, with the runs' names among the fields."""
        fields = asdict(self)
        runs = fields.pop("runs")
        return {**fields, **runs}

    @classmethod
    def of(cls, flat: dict[str, Any]) -> Step:
        """The step of which `flat` was made."""
        runs = {name: Measured(**m) for name, m in flat.items() if isinstance(m, dict)}
        return cls(**{name: flat[name] for name in flat.keys() - runs.keys()}, runs=runs)


@dataclass(frozen=True)
class Validation:
    """The loss of each run, in nats, after so many steps."""

    step: int
    losses: Mapping[str, float]

    def flat(self) -> dict[str, float]:
        """As files hold it."""
        return {"step": self.step, **self.losses}

    @classmethod
    def of(cls, flat: dict[str, Any]) -> Validation:
        """The validation of which `flat` was made."""
        return cls(flat["step"], {name: flat[name] for name in flat if name != "step"})


class Comparison:
    """Takes runs through a recipe, step by step, and keeps what was measured.

    `updates`: for each run's name what makes its update (see Run); torch's and fusedstep's by
    default. `steps` and `validations` hold what was measured so far.
    """

    def __init__(
        self, recipe: Recipe, corpus: Corpus, updates: Mapping[str, MakeUpdate] = UPDATES
    ) -> None:
        self.recipe = recipe
        self._training = windows(corpus.training, recipe.shape.context, "training")
        validation = windows(corpus.validation, recipe.shape.context, "validation")
        self._validation = self._to_device(validation.spread(recipe.validation_windows))

        with torch.random.fork_rng(devices=[]):  # the model is made on the CPU
            torch.manual_seed(recipe.seed)
            model = GPT(recipe.shape)
        self.runs = {
            name: Run(copy.deepcopy(model), make_update, recipe)
            for name, make_update in updates.items()
        }
        self.sampler = Sampler(len(self._training), recipe.seed)
        self.steps: list[Step] = []
        self.validations: list[Validation] = []

    @property
    def finished(self) -> bool:
        """Whether every step of the recipe was taken."""
        return len(self.steps) >= self.recipe.steps

    def advance(self) -> Step:
        """One step of each run on the same batch, taking turns in going first.

        Raises InputError where a loss or a gradient norm is not finite.
        """
        done = len(self.steps)
        if done == 0:
            self._validate()
        tokens = self.steps[-1].tokens if self.steps else 0
        size = self.recipe.batch_size(tokens)
        inputs, targets = self._to_device(self._training.rows(self.sampler.take(size)))
        rate = self.recipe.rate(done)
        measured: dict[str, Measured] = {}
        for name in self.runs if done % 2 == 0 else reversed(self.runs):
            measured[name] = self.runs[name].step(inputs, targets, rate)
            _check_finite(measured[name].loss, f"loss of the {name} run", done + 1)
            _check_finite(measured[name].norm, f"gradient norm of the {name} run", done + 1)
        in_order = {name: measured[name] for name in self.runs}
        step = Step(done + 1, tokens + inputs.numel(), inputs.numel(), rate, in_order)
        self.steps.append(step)
        if self.finished or len(self.steps) % max(1, self.recipe.steps // VALIDATIONS) == 0:
            self._validate()
        return step

    def largest_difference(self) -> tuple[float, str]:
        """The largest absolute difference between both runs' parameters, and in which of them.

        After one step it is rounding. It grows fastest where the true gradient is zero, as in the
        biases of attention keys: Adam turns the rounding errors there into whole steps.
        """
        ours = dict(self.runs["fusedstep"].model.named_parameters())
        theirs = self.runs["torch"].model.named_parameters()
        return max(((p - ours[name]).abs().max().item(), name) for name, p in theirs)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step and the report depend on."""
        return {
            "runs": {name: run.state_dict() for name, run in self.runs.items()},
            "sampler": self.sampler.state_dict(),
            "steps": [step.flat() for step in self.steps],
            "validations": [validation.flat() for validation in self.validations],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called, with the same recipe and text."""
        for name, run in self.runs.items():
            run.load_state_dict(state["runs"][name])
        self.sampler.load_state_dict(state["sampler"])
        self.steps = [Step.of(flat) for flat in state["steps"]]
        self.validations = [Validation.of(flat) for flat in state["validations"]]

    def _validate(self) -> None:
        losses = {name: run.evaluate(*self._validation) for name, run in self.runs.items()}
        for name, loss in losses.items():
            _check_finite(loss, f"validation loss of the {name} run", len(self.steps))
        self.validations.append(Validation(len(self.steps), losses))

    def _to_device(self, some: Windows) -> tuple[Tensor, Tensor]:
        return some.long(self.recipe.device)


def _check_finite(value: float, name: str, step: int) -> None:
    """Raises InputError where it is not: nothing after it would mean anything."""
    if not math.isfinite(value):
        raise InputError(f"the {name} is {value} at step {step}; a smaller --lr may help")
