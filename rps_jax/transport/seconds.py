"""Where the time of an exchange goes."""

import time
from typing import NamedTuple


class Seconds(NamedTuple):
    """Where the time of one worker's exchange went; all but `opening` one after the other.

    Attributes:
        sealing: making datagrams.
        pacing: until the link may take more.
        sending: in the system's calls.
        waiting: for the others.
        averaging: of the block that this worker serves.
        opening: processor time of checking and filing datagrams, in a thread of its own.
    """

    sealing: float = 0.0
    pacing: float = 0.0
    sending: float = 0.0
    waiting: float = 0.0
    averaging: float = 0.0
    opening: float = 0.0


class Stopwatch:
    """Sums up times by name.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        """Starts now."""
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Adds the time since the last lap to those of a name."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
