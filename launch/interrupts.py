"""SIGTERM and Ctrl-C as a flag that the training loop looks at between steps."""

import signal
from types import FrameType
from typing import Any


class Interrupts:
    """Remembers a signal while the loop runs; a second one ends the program at once.

    Attributes:
        received: The number of the signal that has come, 0 before.
    """

    def __init__(self) -> None:
        """Has received none."""
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        for again in self._before:
            signal.signal(again, signal.SIG_DFL)
