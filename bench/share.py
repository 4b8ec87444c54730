"""The group "share": what part of a training step clip and step take, with torch's and with ours.

    python -m bench.share             all of it, about two minutes, and a sentence for each model
    python -m bench.share --seconds 30 --threads 1      with other options of `python -m bench`

A step is forward, backward, and the optimizer: clipping by the global norm and AdamW, torch's
fastest or ours. Every sample takes whole steps and counts one part of them, so that each part finds
the caches as training leaves them. Not counted: drawing a batch and forgetting the gradients.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from bench.case import Case, Side, Work
from bench.command import exit_status
from bench.places import OURS, PARTS, places
from bench.record import read_csv
from bench.step_cases import ADAMW, MLP_WIDTHS, least_bytes
from bench.studies.language_model.model import GPT
from bench.studies.language_model.training import (
    SIZES,
    MakeUpdate,
    fused_update,
    torch_update,
)

UPDATES: dict[str, MakeUpdate] = {OURS: fused_update, ADAMW.against: torch_update}
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Task:
    """A model that returns its loss on a batch, and how batches are drawn."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]


class Classifier(nn.Module):
    """Linear layers with ReLUs between, and the cross-entropy of the classes."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, points: Tensor, classes: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            points = relu(layer(points))
        return cross_entropy(last(points), classes)


def gpt(batch: int) -> Task:
    """The small model of `make train`."""
    shape = SIZES["small"].shape

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(shape.vocabulary, (batch, shape.context + 1), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]

    return Task(f"gpt-batch-{batch}", partial(GPT, shape), draw)


def mlp(batch: int) -> Task:
    """The MLP of the group "step"."""

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        points = torch.randn(batch, MLP_WIDTHS[0], generator=generator)
        return points, torch.randint(MLP_WIDTHS[-1], (batch,), generator=generator)

    return Task(f"mlp-batch-{batch}", partial(Classifier, *MLP_WIDTHS), draw)


TASKS = (gpt(1), gpt(SIZES["small"].batch), mlp(32), mlp(1024))


class Training:
    """A model in training, each step on a batch of its own."""

    def __init__(self, task: Task, make_update: MakeUpdate, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = task.model().to(device)
        self.optimizer, self._update = make_update(self.model)
        self._batch = partial(task.batch, torch.Generator().manual_seed(0))
        self._device = device

    def seconds(self, part: str, steps: int) -> float:
        """Of one part of so many steps."""
        at, total = PARTS.index(part), 0.0
        for _ in range(steps):
            inputs, targets = (tensor.to(self._device) for tensor in self._batch())
            marks = [self._now()]
            loss = self.model(inputs, targets)
            marks.append(self._now())
            loss.backward()
            marks.append(self._now())
            self._update()
            marks.append(self._now())
            self.optimizer.zero_grad()
            total += marks[at + 1] - marks[at]
        return total

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def sides_of(task: Task, part: str, device: torch.device) -> Iterator[Side]:
    for provider, make_update in UPDATES.items():
        training = Training(task, make_update, device)
        params = list(training.model.parameters())
        yield Side(provider, partial(training.seconds, part), partial(list, params))


def cases() -> Iterator[Case]:
    for task in TASKS:
        with torch.device("meta"):
            shapes = tuple(tuple(param.shape) for param in task.model().parameters())
        work = Work(ADAMW.name, ADAMW.arguments, "float32", clip=True, shapes=shapes)
        for part in PARTS:
            yield Case(
                name=f"share/{task.name}/{part}",
                tensors=len(shapes),
                elements=work.elements,
                dtype="float32",
                mode=work.mode,
                least_bytes=least_bytes(work) if part == PARTS[-1] else 0,
                operations=0,
                sides=partial(sides_of, task, part),
                tolerance=TOLERANCE,
            )


def run(arguments: list[str]) -> int:
    """Exit status of `python -m bench`."""
    from bench import __main__ as program  # which asks this module for its cases

    options = program.arguments(["--cases", "share/*", *arguments])
    status = program.run(options)
    if options.out.exists():
        for place in places(read_csv(options.out)):
            print(f"\n{place.note}")
            for training in place.trainings():
                print(training.sentence())
    return status


if __name__ == "__main__":
    sys.exit(exit_status("share", lambda: run(sys.argv[1:])))
