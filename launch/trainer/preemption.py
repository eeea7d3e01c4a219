"""SIGTERM, Ctrl-C and a time limit as something to look at between steps."""

import signal
import time
from types import FrameType
from typing import Any

from launch.cli.command_line import CommandError

_SAME_REQUEST_SECONDS = 5.0
"""Schedulers send a signal twice, or to a process and then to its group."""


class Stopped(CommandError):
    """A signal asked a run to stop, and nothing that it has done is lost.

    Attributes:
        signal_number: Number of the signal.
        where: Where the run was.
    """

    def __init__(self, signal_number: int, where: str, go_on: str, *, said: bool = True) -> None:
        """Takes the exit status that shells expect after a signal.

        Args:
            signal_number: Number of the signal.
            where: Where the run was.
            go_on: The command that goes on with it.
            said: Whether to say anything; one process of a job does.
        """
        super().__init__(where)
        self.signal_number, self.where = signal_number, where
        self._go_on, self._said = go_on, said
        self.exit_status = 128 + signal_number

    def report(self) -> str:
        """Returns no error, and in its last line a command."""
        if not self._said:
            return ""
        number = self.signal_number
        by = "the time limit" if number == signal.SIGALRM else signal.Signals(number).name
        return f"stopped by {by} {self.where}; go on with\n{self._go_on}"


class Deadline:
    """A moment at which training is to stop, as if SIGALRM had come."""

    def __init__(self, seconds: float | None) -> None:
        """Starts the clock.

        Args:
            seconds: Until then; None for never.
        """
        self._moment = None if seconds is None else time.monotonic() + seconds

    @property
    def signal_number(self) -> int:
        """SIGALRM once the moment has come, 0 before."""
        passed = self._moment is not None and time.monotonic() >= self._moment
        return signal.SIGALRM if passed else 0


class StopSignals:
    """Remembers the signals that come while it is entered.

    Attributes:
        received: Their numbers, in the order in which they came.
        insisted: Whether another has come five seconds after the first, or later: until then it is
            the same request.
    """

    def __init__(
        self,
        numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT),
        *,
        second_ends: bool = True,
    ) -> None:
        """Has received none.

        Args:
            numbers: Numbers of the signals to remember.
            second_ends: Whether the program ends at once where a signal insists.
        """
        self.received: list[int] = []
        self.insisted = False
        self._began = 0.0
        self._numbers, self._second_ends = numbers, second_ends
        self._before: dict[int, Any] = {}

    @property
    def first(self) -> int:
        """The number of the first that has come, 0 before."""
        return self.received[0] if self.received else 0

    def __enter__(self) -> "StopSignals":
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if not self.received:
            self._began = now
        self.received.append(number)
        self.insisted = now - self._began >= _SAME_REQUEST_SECONDS
        if self._second_ends and self.insisted:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
