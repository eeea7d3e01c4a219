"""SIGTERM and Ctrl-C as something to look at between steps."""

import signal
from types import FrameType
from typing import Any


class Interrupts:
    """Remembers the signals that come while it is entered.

    Attributes:
        received: Their numbers, in the order in which they came.
    """

    def __init__(
        self,
        numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT),
        *,
        second_ends: bool = True,
    ) -> None:
        """Has received none.

        Args:
            numbers: Of the signals to remember.
            second_ends: Whether a second signal ends the program at once.
        """
        self.received: list[int] = []
        self._numbers, self._second_ends = numbers, second_ends
        self._before: dict[int, Any] = {}

    @property
    def first(self) -> int:
        """The number of the first that has come, 0 before."""
        return self.received[0] if self.received else 0

    def __enter__(self) -> "Interrupts":
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received.append(number)
        if self._second_ends:
            for again in self._numbers:
                signal.signal(again, signal.SIG_DFL)
