"""What the studies' command lines have in common: one sentence of refusal, numbers with a rule."""

import argparse
import math
from collections.abc import Callable

from .errors import InputError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> None:
        raise InputError(message)


def number(kind: type, rule: str, holds: Callable) -> Callable[[str], float]:
    """An argument's type: a number of a kind for which a rule holds."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {rule}, got {text}")
        return value

    return parse


count = number(int, "an integer of at least 1", lambda n: n >= 1)
seed = number(int, "an integer from 0 to 2^63 - 1", lambda n: 0 <= n < 2**63)
positive = number(float, "a finite number above 0", lambda x: 0 < x < math.inf)
share = number(float, "a number from 0 up to but not 1", lambda x: 0 <= x < 1)
