"""The arguments that schedules have in common: counts of steps, and rates."""

import math
from typing import Any

from fusedstep.checks import refuse, require_number


def require_rate(function: str, argument: str, value: Any) -> float:
    """`value` as a finite float that is not negative."""
    rate = require_number(function, argument, value)
    if rate == math.inf:
        refuse(function, argument, "be finite", rate)
    return rate
