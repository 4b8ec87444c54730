"""The Newton variants of fusedstep.lm_head as the study runs them, and why each goes as it goes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fusedstep import lm_head

Reason = Callable[[dict, dict], str]  # of the batch's facts and the variant's outcome


@dataclass(frozen=True)
class Variant:
    """A method with its options; `root`: it seeks where the loss is c, else where it is least."""

    name: str
    method: Callable
    reason: Reason
    options: dict[str, Any] = field(default_factory=dict)
    root: bool = True
    published: bool = False


# The loss constants are those of the article's three functions.
FULL, COMPONENTS, RECALCULATED = ({"loss_constant": c} for c in (0.01, 0.1, 0.9))


def _rises(outcome: dict) -> str:
    return f"rose in {outcome['rises']} of {len(outcome['losses'])} steps"


def _newton_cg(facts: dict, outcome: dict) -> str:
    reason = f"the true curvature by 10 products a step, and a line search: it {_rises(outcome)}"
    if facts["kernel_rank"] == facts["tokens"]:
        reason += (
            f"; the {facts['tokens']} tokens' gradients are independent, so that no mean of them "
            "is 0: nothing stops it above a loss of 0"
        )
    return reason


VARIANTS = (
    Variant(
        "full, as published",
        lm_head.newton_full,
        lambda f, o: (
            f"<G, pinv(G).T> is the rank of the gradient G, {f['gradient_rank']}: the linear loss "
            f"moves {f['gradient_rank']} times as far as was asked"
        ),
        FULL,
        published=True,
    ),
    Variant(
        "full / rank",
        lm_head.newton_full,
        lambda f, o: (
            f"divided by {f['gradient_rank']} the step is as long as the linear loss asks, but it "
            f"goes furthest where G is weakest: the loss {_rises(o)}"
        ),
        {**FULL, "scaling": "rank"},
    ),
    Variant(
        "full, Frobenius",
        lm_head.newton_full,
        lambda f, o: (
            f"the shortest step to the linear loss's root is (L - c) / |G| long, |G| = "
            f"{f['gradient_norm']:.2g} at first: beyond where the line holds, the loss {_rises(o)}"
        ),
        {**FULL, "scaling": "frobenius"},
    ),
    Variant(
        "components, as published",
        lm_head.newton_components,
        lambda f, o: (
            f"the tokens' gradients resemble each other: the kernel's lambda_max is "
            f"{f['kernel_top']:.1f}, and steps that are added up converge only below 2"
        ),
        COMPONENTS,
        published=True,
    ),
    Variant(
        "components / N",
        lm_head.newton_components,
        lambda f, o: (
            f"N = {f['tokens']} is enough for any tokens, and {f['tokens'] / f['kernel_top']:.0f} "
            f"times the lambda_max of these: it creeps"
        ),
        {**COMPONENTS, "scaling": "mean"},
    ),
    Variant(
        "components / lambda_max",
        lm_head.newton_components,
        lambda f, o: (
            f"divided by lambda_max, {f['kernel_top']:.1f} at first, it converges as Jacobi's "
            f"iteration does, slowly where eigenvalues are small: the loss {_rises(o)}"
        ),
        {**COMPONENTS, "scaling": "spectral"},
    ),
    Variant(
        "recalculated, as published",
        lm_head.newton_components_recalculated,
        lambda f, o: (
            "each token meets its equation in turn, but the equations ask for a loss of c = 0.9: "
            f"the {100 * o['below']:.0f} % of the tokens that end below it are to step back up"
        ),
        RECALCULATED,
        published=True,
    ),
    Variant(
        "recalculated, never uphill",
        lm_head.newton_components_recalculated,
        lambda f, o: (
            f"the same for c = 0.1, where the {100 * o['below']:.0f} % of the tokens that end "
            "below it stay"
        ),
        {**COMPONENTS, "uphill": False},
    ),
    Variant(
        "joint",
        lm_head.newton_joint,
        lambda f, o: (
            f"{f['tokens']} equations in one linear system; their kernel has rank "
            f"{f['kernel_rank']}, so that all can be met"
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
            f"{f['bound_ratio']:.0f} times the curvature, so steps are short: the loss {_rises(o)}"
        ),
        root=False,
    ),
    Variant(
        "block diagonal",
        lm_head.newton_block_diagonal,
        lambda f, o: (
            "the Hessian is up to twice its diagonal blocks, hence half steps at most; along the "
            f"first gradient it is {f['blocks_ratio']:.2f} times: the loss {_rises(o)}"
        ),
        {"damping": 1.0},
        root=False,
    ),
)
