"""The arguments that schedules have in common: counts of steps, and rates."""

import math
from numbers import Integral
from typing import Any

from fusedstep.checks import refuse, require_number


def require_count(function: str, argument: str, value: Any, least: int = 0) -> int:
    """`value` as an int that is not below `least`; NumPy's integers count too."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        refuse(function, argument, "be an int", f"{type(value).__name__} {value!r}", TypeError)
    if value < least:
        refuse(function, argument, f"be at least {least}", value)
    return int(value)


def require_rate(function: str, argument: str, value: Any) -> float:
    """`value` as a finite float that is not negative."""
    rate = require_number(function, argument, value)
    if rate == math.inf:
        refuse(function, argument, "be finite", rate)
    return rate
