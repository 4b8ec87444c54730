"""Every Newton variant from the same start on the same batch: loss by iteration and by second."""

import math
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from .facts import facts_of
from .progress import Stage, Stages
from .settings import Settings
from .variants import VARIANTS, Variant

EXPLODED = 10  # times the loss at first
HOPELESS = 1e30  # a loss from which nobody comes back


def study(
    start: Tensor, hidden: Tensor, tokens: Tensor, settings: Settings, stages: Stages
) -> dict:
    """`facts` of the batch and, under `variants`, each variant's outcome and reason by its name."""
    facts = facts_of(start, hidden, tokens)
    outcomes = {}
    for variant in VARIANTS:
        with stages.stage(f"Newton: {variant.name}", settings.newton_iterations) as stage:
            outcome = run(variant, start, hidden, tokens, settings, stage)
        outcomes[variant.name] = {**outcome, "reason": variant.reason(facts, outcome)}
    before = F.cross_entropy(hidden @ start.T, tokens).item()
    return {"before": before, "facts": facts, "variants": outcomes}


def run(
    variant: Variant,
    start: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    settings: Settings,
    stage: Stage,
) -> dict:
    """Iterates until the iterations or the seconds are used up or the loss is beyond all bounds.

    Each iteration is a call of its own, so its time has the loss before and after it, and for
    Böhning's bound the factorisation, again. A loss that is not finite is None.
    """
    weight, losses, seconds, spent, rises = start, [], [], 0.0, 0
    first = F.cross_entropy(hidden @ start.T, tokens).item()
    while len(losses) < settings.newton_iterations and spent < settings.newton_seconds:
        began = time.perf_counter()
        weight, around = variant.method(weight, hidden, tokens, **variant.options)
        spent += time.perf_counter() - began
        before, loss = around.tolist()
        rises += not loss <= before
        losses.append(loss if math.isfinite(loss) else None)
        seconds.append(spent)
        stage.step(f"loss {loss:.3g}")
        if not loss < HOPELESS:
            break
    return {
        "root": variant.root,
        "published": variant.published,
        "options": variant.options,
        "losses": losses,
        "seconds": seconds,
        "rises": rises,
        "exploded": not loss < EXPLODED * first,
        "below": _below(variant, weight, hidden, tokens),
    }


@torch.no_grad()
def _below(variant: Variant, weight: Tensor, hidden: Tensor, tokens: Tensor) -> float | None:
    """The share of tokens whose loss ended below c; None for a method that has none."""
    if not variant.root:
        return None
    losses = F.cross_entropy(hidden @ weight.T, tokens, reduction="none")
    return float((losses < variant.options["loss_constant"]).double().mean())
