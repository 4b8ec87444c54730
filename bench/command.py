"""What the studies' command lines share: numbers with a rule, refusals in a sentence, Ctrl-C."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130  # exit status, as shells count it: 128 + SIGINT


class InputError(Exception):
    """Something the user gave cannot be used; the message is one whole sentence about it."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage; shows its description as written."""

    def __init__(self, description: str | None):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def number(
    kind: Callable[[str], float], rule: str, holds: Callable[[Any], bool]
) -> Callable[[str], float]:
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


count = number(int, "an integer from 1 to 2^31 - 1", lambda n: 1 <= n < 2**31)
seed = number(int, "an integer from 0 to 2^63 - 1", lambda n: 0 <= n < 2**63)
positive = number(float, "a finite number above 0", lambda x: 0 < x < math.inf)
share = number(float, "a number from 0 up to but not 1", lambda x: 0 <= x < 1)


def printable(text: object) -> str:
    """Text for one line of any terminal: line ends, and a file name's odd bytes, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def make_folder(path: Path) -> None:
    """Make the folder of `--out`; raises InputError where that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {path} cannot be made: {error.strerror}") from None


def exit_status(program: str, main: Callable[[], int]) -> int:
    """What `main` returns: 0 for done; 2 if the user should change something, 130 after Ctrl-C."""
    try:
        return main()
    except InputError as error:
        print(f"{program}: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


class Interruption:
    """Ctrl-C as a request: finish the step at hand, keep a checkpoint, then stop.

    Inside `with`, the first SIGINT or SIGTERM only sets `requested`; a second one kills. It loses
    only the steps since the last checkpoint, which is written whole.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
