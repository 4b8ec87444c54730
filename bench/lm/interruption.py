"""Ctrl-C as a polite request: finish the step at hand, keep a checkpoint, then stop."""

import signal
from types import FrameType


class Interruption:
    """Inside `with`, the first SIGINT or SIGTERM only sets `requested`; a second one kills.

    The second one loses nothing but the steps since the last checkpoint, which is written whole.
    """

    def __init__(self):
        self.requested = False
        self._before = {}

    def __enter__(self) -> "Interruption":
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
