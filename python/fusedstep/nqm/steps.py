"""How many steps a rule needs to a target loss at its best rate, and from which batch size on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fusedstep.checks import refuse
from fusedstep.nqm.model import (
    Array,
    Model,
    make_model,
    require_batch_size,
    require_sequence,
    require_target,
)
from fusedstep.nqm.race import fastest
from fusedstep.nqm.rules import require_pairs, require_rule


class Result(NamedTuple):
    """The fastest way to the target on a grid of rates and momenta.

    Attributes:
        steps: The last number of steps after which the loss is not yet below the target, at least
            1: the paper's count, one less than the steps that reach it.
        lr: The rate that needs the fewest steps; the first on the grid where several do.
        momentum: Its momentum, or the decay of the rule "ema"; 0 for "sgd" and "adam".
    """

    steps: int
    lr: float
    momentum: float


def steps_to_target(
    rule: str,
    *,
    batch_size: float,
    power: float = 0.0,
    target: float = 0.01,
    dim: int = 10_000,
    bins: int | None = 100,
    lrs: Sequence[float] | None = None,
    momenta: Sequence[float] | None = None,
) -> Result:
    """Steps to a target loss in the noisy quadratic model, at the best rate of a grid.

    The model: L(theta) = 1/2 sum_i h_i theta_i^2 with h_i = 1 / i, theta(0) ~ N(0, I), and
    gradients with noise of variance h_i / B. The mean loss after t steps is known exactly; t comes
    from doubling and bisection. Rates that diverge are left out.

    For "sgd", "momentum" and "ema" the mean loss is a closed form, in float64, right to the step
    up to some 1e9 steps; any cell takes a fraction of a second. "adam" is simulated step by step
    (its preconditioner moves), some 6 microseconds a step and up to 2^24 steps.

    With momentum the loss can oscillate around the target. What is returned is then a crossing:
    the loss is not below the target after `steps` and is below it one step later.

    Args:
        rule: "sgd" (equation 3 of the paper), "momentum" (heavy ball, equation 21), "ema" (SGD,
            and the loss of the exponential moving average of its weights, equation 38) or "adam"
            (each coordinate divided by the root of its gradient's mean square).
        batch_size: B, at least 1. Infinite means no noise, but not for "adam".
        power: p of the fixed preconditioner H^p, from 0 (none) to 1 (Newton); 0 for "adam".
        target: Mean loss to reach, above 0 and below the one before the first step.
        dim: Number of coordinates.
        bins: Number of geometric bins of the curvatures, at least 2, as in the paper's notebook;
            None for all `dim` of them, which takes as much longer as they are more.
        lrs: Rates to choose from, above 0; None for the notebook's 100 (from 1e-5 to 3.2 for "sgd"
            and "adam", from 1e-8 to 10 for the others).
        momenta: Momenta, or decays of "ema", at least 0 and below 1; None for the notebook's 20
            from 0.99999 to 0. "sgd" and "adam" take none.

    Returns:
        `Result(steps, lr, momentum)`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, all rates diverge, or none of them reaches the
            target: the message gives the least loss that they reach. It is
            `steps_to_target: <argument> must <property>, got <value>`.

    Example:
        >>> steps, lr, _ = steps_to_target("sgd", batch_size=1024)
        >>> steps, round(lr, 3)
        (10609, 1.668)
        >>> steps_to_target("momentum", batch_size=1024).steps
        5203

    Source: Zhang et al. 2019, "Which Algorithmic Choices Matter at Which Batch Sizes? Insights
    From a Noisy Quadratic Model", section 3, arXiv 1907.04164.
    """
    name = "steps_to_target"
    model = make_model(name, batch_size=batch_size, power=power, dim=dim, bins=bins)
    rule = require_rule(name, rule, model)
    target = require_target(name, target, model.initial_loss)
    return _result(name, rule, model, target, *require_pairs(name, rule, lrs, momenta))


def critical_batch_size(
    rule: str,
    *,
    power: float = 0.0,
    target: float = 0.01,
    dim: int = 10_000,
    bins: int | None = 100,
    lrs: Sequence[float] | None = None,
    momenta: Sequence[float] | None = None,
    batch_sizes: Sequence[float] = (4, 2**20),
) -> float:
    """The batch size at which perfect scaling ends and more examples no longer save steps.

    Small batches need a number of examples, E = B S(B), that does not depend on B. Large ones need
    a number of steps, S, that does not. The two asymptotes of steps against batch size cross at
    E / S: there the steps are about twice the least, and so are the examples.

    Args:
        rule: As in `steps_to_target`, as are the following arguments.
        power: p of the fixed preconditioner.
        target: Mean loss to reach.
        dim: Number of coordinates.
        bins: Number of bins of the curvatures, or None.
        lrs: Rates to choose from.
        momenta: Momenta to choose from.
        batch_sizes: The two, ascending, at which E and S are taken: one where all noise averages
            out over the steps, one where there is hardly any.

    Returns:
        E / S.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: As for `steps_to_target`. The message is
            `critical_batch_size: <argument> must <property>, got <value>`.

    Example:
        >>> round(critical_batch_size("momentum") / critical_batch_size("sgd"))
        36

    Source: Zhang et al. 2019, section 3; E / S is the critical batch size of McCandlish et al.
    2018, "An Empirical Model of Large-Batch Training", equation 2.12, arXiv 1812.06162.
    """
    name = "critical_batch_size"
    given = require_sequence(name, "batch_sizes", batch_sizes)
    if len(given) != 2:
        refuse(name, "batch_sizes", "have two entries", len(given))
    names = enumerate(given)
    small, large = (require_batch_size(name, size, f"batch_sizes[{i}]") for i, size in names)
    if not small < large:
        refuse(name, "batch_sizes", "ascend", (small, large))
    model = make_model(name, batch_size=small, power=power, dim=dim, bins=bins)
    rule = require_rule(name, rule, model.at(large), "batch_sizes[1]")
    target = require_target(name, target, model.initial_loss)
    pairs = require_pairs(name, rule, lrs, momenta)
    examples = small * _result(name, rule, model, target, *pairs).steps
    return examples / _result(name, rule, model.at(large), target, *pairs).steps


def _result(
    function: str, rule: str, model: Model, target: float, lrs: Array, momenta: Array
) -> Result:
    first, place = fastest(function, rule, model, target, lrs, momenta)
    return Result(max(first - 1, 1), float(lrs[place]), float(momenta[place]))
