"""The curvature that an optimizer sees: its preconditioner from its live state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fusedstep.checks import refuse
from fusedstep.dynamics.curvature import Eigenpairs, eigenpairs
from fusedstep.dynamics.optimizers import rule_of, trainable
from fusedstep.dynamics.products import Losses, make_products
from fusedstep.optim.hyperparameters import Group, betas, numbers, parameter_labels
from fusedstep.optim.state import CODES, decoded, scale_name

State = Mapping[str, Any]
Entry = Callable[[str], Tensor]  # an entry of a parameter's state in float64, by name


def preconditioned_sharpness(
    optimizer: Any,
    loss_fn: Losses,
    *,
    seed: int = 0,
    products: str = "autograd",
    tol: float | None = None,
) -> float:
    """The largest eigenvalue of the Hessian as an optimizer's preconditioner scales it.

    The operator is P^-1/2 H P^-1/2 with the diagonal P by which the last step divided its momentum,
    read from the live state in whatever form it is kept; `stability_threshold` is in its units.

    | rule | P |
    | --- | --- |
    | SGD, with momentum or not | 1 |
    | Adam, AdamW | (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps); amsgrad: its largest v |
    | RMSprop | sqrt(v) + eps; centered: of v less the square of the mean gradient |
    | Adagrad | (1 + (t - 1) lr_decay) (sqrt(sum) + eps) |

    A parameter that does not require a gradient is left out. bfloat16 parameters count as they are,
    whatever master they have; products in bfloat16 have 8 bits, and where P is small the division
    enlarges their error, which can be tens of percent of the result. Nothing is changed, as in
    `hessian_top_eigenvalues`.

    Args:
        optimizer: An Adam, AdamW, RMSprop, SGD or Adagrad of fusedstep or torch, which has taken a
            step for every parameter (SGD has no preconditioner and needs none).
        loss_fn: As in `hessian_top_eigenvalues`; it depends on the optimizer's parameters.
        seed: As in `hessian_top_eigenvalues`.
        products: As in `hessian_top_eigenvalues`.
        tol: As in `hessian_top_eigenvalues`.

    Returns:
        The eigenvalue.

    Raises:
        TypeError, ValueError, RuntimeError: As in `hessian_top_eigenvalues`; or another optimizer,
            or one without state yet. The message is `preconditioned_sharpness: <argument> must
            <property>, got <value>`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        >>> opt = fusedstep.RMSprop([w], lr=0.0, eps=0.0)
        >>> loss_fn = lambda: 4 * w[0] ** 2 + w[1] ** 2  # curvatures 8, 2 and gradients 8, 2
        >>> loss_fn().backward(); opt.step()
        >>> round(preconditioned_sharpness(opt, loss_fn), 6)  # 8 / sqrt(0.01 * 8^2)
        10.0

    Source: Cohen et al. 2022, section 2, arXiv 2207.14484.
    """
    pairs = preconditioned_pairs(
        "preconditioned_sharpness", optimizer, loss_fn, seed=seed, products=products, tol=tol
    )
    return float(pairs.values[0])


def preconditioned_pairs(
    function: str,
    optimizer: Any,
    loss_fn: Losses,
    *,
    start: Any = None,
    seed: int = 0,
    products: str = "autograd",
    tol: float | None = None,
) -> Eigenpairs:
    """The first eigenpair of the preconditioned Hessian, for a function of this name."""
    diagonals = preconditioner_of(function, optimizer)
    hessian = make_products(function, loss_fn, trainable(optimizer), products)
    return eigenpairs(
        function, hessian, 1, preconditioner=diagonals, seed=seed, start=start, tol=tol
    )


@torch.no_grad()
def preconditioner_of(function: str, optimizer: Any) -> list[Tensor] | None:
    """P for each parameter that requires a gradient, in float64; None if it is the identity."""
    diagonal = DIAGONALS[rule_of(function, optimizer)]
    if diagonal is None:
        return None
    diagonals, count = [], 0
    for g, group in enumerate(optimizer.param_groups):
        labels = parameter_labels(group, first=count)
        count += len(labels)
        for where, param in zip(labels, group["params"], strict=True):
            if param.requires_grad:
                state = optimizer.state.get(param, {})
                diagonals.append(diagonal(function, group, g, _reader(function, where, state)))
    return diagonals


def _reader(function: str, where: str, state: State) -> Entry:
    """A function that reads the entries of a state by name and refuses what is missing."""

    def entry(name: str) -> Tensor:
        value = state.get(name)
        if value is None or (name == "step" and float(value) < 1):
            refuse(function, "optimizer", f"have taken a step with {where}", f"no {name}")
        array: Tensor = torch.as_tensor(value)
        if array.dtype in CODES:
            array = decoded(array, state[scale_name(name)])
        return array.to(torch.float64)

    return entry


def _adam(function: str, group: Group, index: int, entry: Entry) -> Tensor:
    decays, eps = betas(function, group, index), numbers(function, group, index, ("eps",))["eps"]
    step = float(entry("step"))
    second_moment = entry("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
    first, second = (1 - float(decays[name] ** step) for name in ("beta1", "beta2"))
    denominator = (second_moment / second).sqrt() + eps
    return first * denominator


def _rmsprop(function: str, group: Group, index: int, entry: Entry) -> Tensor:
    variance = entry("square_avg")
    if group["centered"]:
        variance = (variance - entry("grad_avg") ** 2).clamp(min=0)
    return variance.sqrt() + numbers(function, group, index, ("eps",))["eps"]


def _adagrad(function: str, group: Group, index: int, entry: Entry) -> Tensor:
    values = numbers(function, group, index, ("eps", "lr_decay"))
    slower = 1 + (float(entry("step")) - 1) * values["lr_decay"]
    return slower * (entry("sum").sqrt() + values["eps"])


DIAGONALS: dict[str, Callable[[str, Group, int, Entry], Tensor] | None] = {
    "Adam": _adam,
    "RMSprop": _rmsprop,
    "SGD": None,
    "Adagrad": _adagrad,
}
