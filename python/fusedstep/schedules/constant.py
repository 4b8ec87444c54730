"""Learning rates that stay where they are: for ever, or up to the next boundary."""

from bisect import bisect_right
from collections.abc import Sequence

from fusedstep.checks import refuse, require_count
from fusedstep.schedules.arguments import require_rate


def constant(step: int, *, lr: float) -> float:
    """The learning rate `lr` at every step, counted from 0.

    Raises TypeError for a `step` that is no int or an `lr` that is no number, ValueError for one
    below zero or an `lr` that is not finite.

    This is what an optimizer without a scheduler has; it stands where a schedule is asked for.
    """
    require_count("constant", "step", step)
    return require_rate("constant", "lr", lr)


def piecewise_constant(step: int, *, boundaries: Sequence[int], values: Sequence[float]) -> float:
    """`values[i]`, where i of the `boundaries` are at most `step`: a staircase.

    A boundary is the first step that has the next value, as MultiStepLR's milestones are; steps
    are counted from 0. `boundaries` has n ints, each above the last and the first above 0,
    `values` n + 1 rates in any order. The last holds from the last boundary on.

    Raises TypeError for a step or boundary that is no int, a value that is no number or an
    argument that is no sequence; ValueError for other lengths, boundaries that do not increase,
    a step or value below zero or a value that is not finite.

    Source: He et al. 2016, "Deep Residual Learning", section 4.2: a tenth at 32k and 48k steps.
    """
    name = "piecewise_constant"
    step = require_count(name, "step", step)
    for argument, given in (("boundaries", boundaries), ("values", values)):
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
            refuse(name, argument, "be a sequence", type(given).__name__, TypeError)
    if len(values) != len(boundaries) + 1:
        must = f"have one more entry than boundaries ({len(boundaries)})"
        refuse(name, "values", must, len(values))
    least, steps = 1, []
    for i, boundary in enumerate(boundaries):
        steps.append(require_count(name, f"boundaries[{i}]", boundary, least))
        least = steps[-1] + 1
    rates = [require_rate(name, f"values[{i}]", value) for i, value in enumerate(values)]
    return rates[bisect_right(steps, step)]
