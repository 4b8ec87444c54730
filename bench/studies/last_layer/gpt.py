"""The last layer of the model that bench.train_lm trained, solved to its least training loss."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from bench.command import InputError
from bench.studies.language_model import checkpoint
from bench.studies.language_model.corpus import Corpus, windows
from bench.studies.language_model.model import GPT, Shape
from bench.studies.language_model.training import SIZES, TOKENS
from bench.studies.last_layer.problem import evaluate, hidden_states
from bench.studies.stages import Stages
from fusedstep import lm_head

RUN = "fusedstep"  # of the two that the checkpoint keeps
SHARES = [tenth / 10 for tenth in range(11)]  # of the way to the solved layer
FIELDS = ("vocabulary", "context", "layers", "heads", "width")


@dataclass(frozen=True)
class Settings:
    """For solving the last layer of a model that bench.train_lm trained."""

    checkpoint: Path = Path("runs/train_lm/checkpoint.pt")
    tokens: int = 65536  # of training text, in whole windows
    steps: int = 10  # of newton_cg, at most
    products: int = 10  # of the Hessian, in each
    enough: float = 1e-3  # a step that lowers the loss by less, relatively, is the last
    held_out: int = 128  # windows
    chunk: int = 16  # windows whose hidden states, and logits, are held at a time
    seed: int = 0


@dataclass(frozen=True)
class NewtonStep:
    """The layer after so many seconds: its loss on the tokens solved for, and held out."""

    seconds: float
    loss: float
    held_out_loss: float  # on the half of the windows that judges
    choosing_loss: float  # on the half that chooses


@dataclass(frozen=True)
class Mixture:
    """A share of the way from the trained to the solved layer."""

    share: float
    held_out_loss: float
    choosing_loss: float


@dataclass(frozen=True)
class Best:
    """The layer with the least loss on the half that chooses, in words."""

    way: str
    held_out_loss: float
    choosing_loss: float


@dataclass(frozen=True)
class Found:
    """Losses in nats, on the tokens solved for and held out."""

    checkpoint_settings: dict[str, Any]
    checkpoint_steps: int
    tokens: int
    parameters: int
    converged: bool
    steps: list[NewtonStep]
    between: list[Mixture]
    best: Best


class Trained:
    """What bench.train_lm left at `path`: the model, its settings, and which text it learnt."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise InputError(
                f"--checkpoint: there is no {path}; `python -m bench.train_lm` makes one at "
                f"{Settings().checkpoint} in about two minutes"
            )
        content = checkpoint.read(path, "--checkpoint")
        with checkpoint.refuse_foreign(path, "--checkpoint"):
            self.settings, self.path = content["settings"], path
            self.model = GPT(Shape(**{name: self.settings[name] for name in FIELDS}))
            self.model.load_state_dict(content["comparison"]["runs"][RUN]["model"])
            self.steps_taken = len(content["comparison"]["steps"])
        self.model.eval()

    @property
    def tokenizer_size(self) -> int:
        """The vocabulary of the tokenizer."""
        size = next(
            (
                name
                for name, r in SIZES.items()
                if r.shape.vocabulary == self.settings["vocabulary"]
            ),
            None,
        )
        if size is None:
            raise InputError(f"--checkpoint: {self.path} has a vocabulary of no --size")
        return TOKENS[size]


def study(trained: Trained, corpus: Corpus, settings: Settings, stages: Stages) -> Found:
    """Solves the last layer by Newton-CG and judges it before and after each step.

    The output matrix of this model is its embedding. Here they part: hidden states come from the
    embedding as trained, and a copy of it, the last layer, is solved. The held-out windows are
    split in turns: one half chooses the best layer among the steps and at equal distances on the
    line from the trained to the solved one; the other half judges it.
    """
    if corpus.fingerprint != trained.settings["text"]:
        raise InputError(f"--checkpoint: {trained.path} was trained on another text than --data")
    context, hidden_of = trained.settings["context"], trained.model.hidden
    training = windows(corpus.training, context, "training")
    generator = torch.Generator().manual_seed(settings.seed)
    count = max(1, min(settings.tokens // context, len(training)))
    part = training.rows(torch.randperm(len(training), generator=generator)[:count])
    held_out = windows(corpus.validation, context, "validation")
    held_out = held_out.spread(settings.held_out)
    turns = torch.arange(len(held_out))
    choosing, judging = (held_out.rows(turns % 2 == half) for half in (0, 1))

    collected = []
    with stages.stage("Hidden states", -(-count // settings.chunk)) as stage:
        for some in part.chunks(settings.chunk):
            collected.append(hidden_states(some, hidden_of))
            stage.step()
    hidden, tokens = (torch.cat(parts) for parts in zip(*collected, strict=True))

    def losses(head: Tensor) -> tuple[float, float]:
        halves = [evaluate(half, hidden_of, head, settings.chunk) for half in (choosing, judging)]
        return halves[1], halves[0]

    start = trained.model.tokens.weight.detach().clone()
    head, seconds = start, 0.0
    points: list[NewtonStep] = []
    with stages.stage("Newton-CG", settings.steps) as stage:
        for _ in range(settings.steps):
            began = time.perf_counter()
            solved = lm_head.newton_cg(head, hidden, tokens, max_products=settings.products)
            spent = time.perf_counter() - began
            before, after = solved.losses.tolist()
            if not points:
                points.append(NewtonStep(0.0, before, *losses(head)))
            head, seconds = solved.weight, seconds + spent
            points.append(NewtonStep(seconds, after, *losses(head)))
            stage.step(f"loss {after:.4f}")
            converged = before - after < settings.enough * before
            if converged:
                break

    with stages.stage("Between the trained layer and the solved", len(SHARES)) as stage:
        between = []
        for share in SHARES:
            between.append(Mixture(share, *losses(torch.lerp(start, head, share))))
            stage.step()
    ways = [Best(f"after step {n}", p.held_out_loss, p.choosing_loss) for n, p in enumerate(points)]
    ways += [
        Best(f"{100 * p.share:.0f} % of the way to the last", p.held_out_loss, p.choosing_loss)
        for p in between
    ]
    return Found(
        checkpoint_settings=trained.settings,
        checkpoint_steps=trained.steps_taken,
        tokens=len(tokens),
        parameters=head.numel(),
        converged=converged,
        steps=points,
        between=between,
        best=min(ways, key=lambda way: way.choosing_loss),
    )


def table(found: Found) -> Table:
    """Before, after each step of Newton-CG, and the best mixture of both layers."""
    steps, best = found.steps, found.best
    view = Table(
        "last layer",
        title=f"Cross-entropy in nats; {found.tokens:,} training tokens solved for",
        title_style="bold",
        caption_justify="left",
        caption_style="",
    )
    for heading in ("those tokens", "held out", "s"):
        view.add_column(heading, justify="right")
    names = ["as AdamW left it", *(f"Newton-CG, step {n}" for n in range(1, len(steps)))]
    for name, point in zip(names, steps, strict=True):
        view.add_row(
            name,
            f"{point.loss:.4f}",
            f"{point.held_out_loss:.4f}",
            f"{point.seconds:.1f}",
        )
    view.add_section()
    view.add_row(f"the best on the way: {best.way}", "", f"{best.held_out_loss:.4f}")
    first, last = steps[0], steps[-1]
    rest = "" if found.converged else ", and it still falls"
    view.caption = (
        f"On the tokens solved for AdamW left {first.loss - last.loss:.3f} nats{rest}. Held "
        f"out, the last layer is off by {last.held_out_loss - first.held_out_loss:+.3f}:\n"
        f"{found.parameters:,} weights fit {found.tokens:,} tokens too well. The best on the "
        "way was chosen on other held-out text;\nit changes the loss by "
        f"{best.held_out_loss - first.held_out_loss:+.3f}, which is what AdamW left. The "
        "model's output matrix is its embedding:\nhere they part, and only a copy is solved."
    )
    return view
