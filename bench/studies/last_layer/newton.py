"""Every Newton variant of fusedstep.lm_head from the same start on the same batch, with reasons."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import one_hot

from bench.studies.last_layer.problem import Settings
from bench.studies.stages import Stage, Stages
from fusedstep import lm_head, pinv

EXPLODED = 10  # times the loss at first
HOPELESS = 1e30  # a loss from which no variant recovers
# The loss constants are those of the article's three functions.
FULL, COMPONENTS, RECALCULATED = ({"loss_constant": c} for c in (0.01, 0.1, 0.9))


@dataclass(frozen=True)
class Facts:
    """Numbers of one batch and one last layer that explain what a Newton step does.

    gradient_rank: of the mean loss's gradient. kernel_rank and kernel_top: of the N x N matrix of
    inner products of the tokens' gradients, each divided by its norm, its rank and its largest
    eigenvalue. bound_ratio: along the gradient, Böhning's bound over the curvature that is there.
    blocks_ratio: along it, the curvature over that of the Hessian's diagonal blocks.
    """

    tokens: int
    classes: int
    gradient_rank: int
    gradient_norm: float
    kernel_rank: int
    kernel_top: float
    bound_ratio: float
    blocks_ratio: float


@dataclass(frozen=True)
class Outcome:
    """How a variant went, by iteration; a loss that is not finite is None."""

    root: bool
    published: bool
    options: Mapping[str, Any]
    losses: list[float | None]
    seconds: list[float]
    rises: int  # iterations that raised the loss
    exploded: bool  # diverged; the name is that of the committed results
    below: float | None  # the share of tokens whose loss ended below c
    reason: str = ""


@dataclass(frozen=True)
class Newton:
    """The loss before, the facts of the batch, and each variant's outcome."""

    before: float
    facts: Facts
    variants: dict[str, Outcome]


Reason = Callable[[Facts, Outcome], str]


@torch.no_grad()
def facts_of(weight: Tensor, hidden: Tensor, tokens: Tensor) -> Facts:
    """Computes them in float64, from the N x V array of a small batch."""
    X, W = hidden.double(), weight.double()
    p = (X @ W.T).softmax(1)
    delta = p - one_hot(tokens, len(W))
    gradient = delta.T @ X / len(X)
    _, info = pinv(gradient, return_info=True)

    delta_unit, X_unit = (rows / rows.norm(dim=1, keepdim=True) for rows in (delta, X))
    kernel = (delta_unit @ delta_unit.T) * (X_unit @ X_unit.T)
    eigenvalues = torch.linalg.eigvalsh(kernel)

    change = X @ gradient.T
    mean = (p * change).sum(1, keepdim=True)
    curvature = (p * (change - mean).square()).sum()
    bound = (change - change.mean(1, keepdim=True)).square().sum() / 2
    blocks = (p * (1 - p) * change.square()).sum()
    return Facts(
        tokens=len(X),
        classes=len(tokens.unique()),
        gradient_rank=int(info.rank),
        gradient_norm=float(gradient.norm()),
        kernel_rank=int((eigenvalues > len(X) * 2.0**-52 * eigenvalues[-1]).sum()),
        kernel_top=float(eigenvalues[-1]),
        bound_ratio=float(bound / curvature),
        blocks_ratio=float(curvature / blocks),
    )


def run(
    variant: Variant,
    start: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    settings: Settings,
    stage: Stage,
) -> Outcome:
    """Iterates until the iterations or the seconds are used up, or the loss is hopeless.

    Each iteration is a call of its own, so its time includes the loss before and after it and, for
    Böhning's bound, the factorisation.
    """
    weight, spent, rises = start, 0.0, 0
    losses: list[float | None] = []
    seconds: list[float] = []
    first = loss = F.cross_entropy(hidden @ start.T, tokens).item()
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
    return Outcome(
        root=variant.root,
        published=variant.published,
        options=variant.options,
        losses=losses,
        seconds=seconds,
        rises=rises,
        exploded=not loss < EXPLODED * first,
        below=_below(variant, weight, hidden, tokens),
    )


@torch.no_grad()
def _below(variant: Variant, weight: Tensor, hidden: Tensor, tokens: Tensor) -> float | None:
    """The share of tokens whose loss ended below c; None for a method without c."""
    if not variant.root:
        return None
    losses = F.cross_entropy(hidden @ weight.T, tokens, reduction="none")
    return float((losses < variant.options["loss_constant"]).double().mean())


def study(
    start: Tensor, hidden: Tensor, tokens: Tensor, settings: Settings, stages: Stages
) -> Newton:
    """Runs every variant from the same start on the same batch."""
    facts = facts_of(start, hidden, tokens)
    outcomes = {}
    for variant in VARIANTS:
        with stages.stage(f"Newton: {variant.name}", settings.newton_iterations) as stage:
            outcome = run(variant, start, hidden, tokens, settings, stage)
        outcomes[variant.name] = replace(outcome, reason=variant.reason(facts, outcome))
    before = F.cross_entropy(hidden @ start.T, tokens).item()
    return Newton(before, facts, outcomes)


# --- the variants, each with the reason for how it goes ---


@dataclass(frozen=True)
class Variant:
    """A method with its options; `root`: it solves loss = c, else it minimises the loss."""

    name: str
    method: Callable[..., tuple[Tensor, Tensor]]
    reason: Reason
    options: Mapping[str, Any] = field(default_factory=dict)
    root: bool = True
    published: bool = False


def _rises(outcome: Outcome) -> str:
    return f"rose in {outcome.rises} of {len(outcome.losses)} steps"


def _below_percent(outcome: Outcome) -> float:
    assert outcome.below is not None, "a method without c has another reason"
    return 100 * outcome.below


def _newton_cg(facts: Facts, outcome: Outcome) -> str:
    reason = f"the true curvature by 10 products a step, and a line search: it {_rises(outcome)}"
    if facts.kernel_rank == facts.tokens:
        reason += (
            f"; the {facts.tokens} tokens' gradients are independent, so that no mean of them "
            "is 0: nothing stops it above a loss of 0"
        )
    return reason


VARIANTS = (
    Variant(
        "full, as published",
        lm_head.newton_full,
        lambda f, o: (
            f"<G, pinv(G).T> is the rank of the gradient G, {f.gradient_rank}: the linear loss "
            f"moves {f.gradient_rank} times as far as was asked"
        ),
        FULL,
        published=True,
    ),
    Variant(
        "full / rank",
        lm_head.newton_full,
        lambda f, o: (
            f"divided by {f.gradient_rank} the step is as long as the linear loss asks, but it "
            f"goes furthest where G is weakest: the loss {_rises(o)}"
        ),
        {**FULL, "scaling": "rank"},
    ),
    Variant(
        "full, Frobenius",
        lm_head.newton_full,
        lambda f, o: (
            f"the shortest step to the linear loss's root is (L - c) / |G| long, |G| = "
            f"{f.gradient_norm:.2g} at first: beyond where the line holds, the loss {_rises(o)}"
        ),
        {**FULL, "scaling": "frobenius"},
    ),
    Variant(
        "components, as published",
        lm_head.newton_components,
        lambda f, o: (
            f"the tokens' gradients resemble each other: the kernel's lambda_max is "
            f"{f.kernel_top:.1f}, and steps that are added up converge only below 2"
        ),
        COMPONENTS,
        published=True,
    ),
    Variant(
        "components / N",
        lm_head.newton_components,
        lambda f, o: (
            f"N = {f.tokens} is enough for any tokens, and {f.tokens / f.kernel_top:.0f} "
            f"times the lambda_max of these: it is slow"
        ),
        {**COMPONENTS, "scaling": "mean"},
    ),
    Variant(
        "components / lambda_max",
        lm_head.newton_components,
        lambda f, o: (
            f"divided by lambda_max, {f.kernel_top:.1f} at first, it converges as Jacobi's "
            f"iteration does, slowly where eigenvalues are small: the loss {_rises(o)}"
        ),
        {**COMPONENTS, "scaling": "spectral"},
    ),
    Variant(
        "recalculated, as published",
        lm_head.newton_components_recalculated,
        lambda f, o: (
            "each token meets its equation in turn, but the equations ask for a loss of c = 0.9: "
            f"the {_below_percent(o):.0f} % of the tokens that end below it have to step back up"
        ),
        RECALCULATED,
        published=True,
    ),
    Variant(
        "recalculated, never uphill",
        lm_head.newton_components_recalculated,
        lambda f, o: (
            f"the same for c = 0.1, where the {_below_percent(o):.0f} % of the tokens that end "
            "below it stay"
        ),
        {**COMPONENTS, "uphill": False},
    ),
    Variant(
        "joint",
        lm_head.newton_joint,
        lambda f, o: (
            f"{f.tokens} equations in one linear system; their kernel has rank "
            f"{f.kernel_rank}, so that all can be met"
        ),
        {**COMPONENTS, "uphill": False},
    ),
    Variant(
        "Newton-CG",
        lm_head.newton_cg,
        _newton_cg,
        {"max_products": 10},
        root=False,
    ),
    Variant(
        "Böhning's bound",
        lm_head.newton_bohning,
        lambda f, o: (
            "a bound on the Hessian, factorised once; along the first gradient it is "
            f"{f.bound_ratio:.0f} times the curvature, so steps are short: the loss {_rises(o)}"
        ),
        root=False,
    ),
    Variant(
        "block diagonal",
        lm_head.newton_block_diagonal,
        lambda f, o: (
            "the Hessian is up to twice its diagonal blocks, hence half steps at most; along the "
            f"first gradient it is {f.blocks_ratio:.2f} times: the loss {_rises(o)}"
        ),
        {"damping": 1.0},
        root=False,
    ),
)
