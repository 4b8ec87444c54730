"""The last layer of the main job's model, solved on training text to its least loss."""

import time
from pathlib import Path

import torch
from lm import checkpoint
from lm.corpus import Corpus, windows
from lm.errors import InputError
from lm.gpt import GPT, Shape
from lm.recipe import SIZES, TOKENS
from torch import Tensor

from fusedstep import lm_head

from .data import Windows, evaluate
from .progress import Stages
from .settings import GPTSettings

RUN = "fusedstep"  # of the two that train_lm.py keeps
SHARES = [tenth / 10 for tenth in range(11)]  # of the way to the solved layer
FIELDS = ("vocabulary", "context", "layers", "heads", "width")


class Trained:
    """What train_lm.py left at `path`: the model, its settings, and which text it learnt."""

    def __init__(self, path: Path):
        if not path.exists():
            raise InputError(
                f"--checkpoint: there is no {path}; `python bench/train_lm.py` makes one at "
                f"{GPTSettings().checkpoint} in about two minutes"
            )
        content = checkpoint.read(path, "--checkpoint")
        self.settings, self.path = content["settings"], path
        self.model = GPT(Shape(**{name: self.settings[name] for name in FIELDS}))
        self.model.load_state_dict(content["comparison"]["runs"][RUN]["model"])
        self.model.eval()
        self.steps_taken = len(content["comparison"]["steps"])

    @property
    def tokenizer_size(self) -> int:
        """The number of tokens that the text is to be cut into."""
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


def study(trained: Trained, corpus: Corpus, settings: GPTSettings, stages: Stages) -> dict:
    """Losses in nats, on the tokens solved for and held out, before and after each step.

    The output matrix of this model is its embedding. Here they part: hidden states come from the
    embedding as trained, and the copy that is the last layer is solved. The held-out windows are
    split in turns: on one half the best layer on the way from the trained to the solved is chosen,
    among the steps and in equal parts of the straight line; on the other it is judged.
    """
    if corpus.fingerprint != trained.settings["text"]:
        raise InputError(f"--checkpoint: {trained.path} was trained on another text than --data")
    context, hidden_of = trained.settings["context"], trained.model.hidden
    training = Windows(*windows(corpus.training, context, "training"))
    generator = torch.Generator().manual_seed(settings.seed)
    count = max(1, min(settings.tokens // context, len(training)))
    part = training.rows(torch.randperm(len(training), generator=generator)[:count])
    held_out = Windows(*windows(corpus.validation, context, "validation"))
    held_out = held_out.spread(settings.held_out)
    turns = torch.arange(len(held_out))
    choosing, judging = (held_out.rows(turns % 2 == half) for half in (0, 1))

    collected = []
    with stages.stage("Hidden states", -(-count // settings.chunk)) as stage:
        for some in part.chunks(settings.chunk):
            collected.append(some.hidden(hidden_of))
            stage.step()
    hidden, tokens = (torch.cat(parts) for parts in zip(*collected, strict=True))

    def losses(head: Tensor) -> dict:
        halves = [evaluate(half, hidden_of, head, settings.chunk) for half in (choosing, judging)]
        return {"held_out_loss": halves[1], "choosing_loss": halves[0]}

    start = trained.model.tokens.weight.detach().clone()
    head, points, seconds = start, [], 0.0
    with stages.stage("Newton-CG", settings.steps) as stage:
        for _ in range(settings.steps):
            began = time.perf_counter()
            solved = lm_head.newton_cg(head, hidden, tokens, max_products=settings.products)
            spent = time.perf_counter() - began
            before, after = solved.losses.tolist()
            if not points:
                points.append({"seconds": 0.0, "loss": before, **losses(head)})
            head, seconds = solved.weight, seconds + spent
            points.append({"seconds": seconds, "loss": after, **losses(head)})
            stage.step(f"loss {after:.4f}")
            converged = before - after < settings.enough * before
            if converged:
                break

    with stages.stage("Between the trained layer and the solved", len(SHARES)) as stage:
        between = []
        for share in SHARES:
            between.append({"share": share, **losses(torch.lerp(start, head, share))})
            stage.step()
    ways = [{"way": f"after step {n}", **point} for n, point in enumerate(points)]
    ways += [{"way": f"{100 * p['share']:.0f} % of the way to the last", **p} for p in between]
    return {
        "checkpoint_settings": trained.settings,
        "checkpoint_steps": trained.steps_taken,
        "tokens": len(tokens),
        "parameters": head.numel(),
        "converged": converged,
        "steps": points,
        "between": between,
        "best": min(ways, key=lambda point: point["choosing_loss"]),
    }
