"""When to send: no faster than a link carries, and never in long bursts."""

import time

_BURST_SECONDS = 1.5e-3
_SHORTEST_SLEEP = 0.6e-3
"""What is due sooner goes at once: waking up costs more than it is early."""


class Pacer:
    """A token bucket of 1.5 ms: a sleep that was too long is made good, idleness is not.

    Attributes:
        bits_per_second: what the link carries; may be changed.
    """

    def __init__(self, bits_per_second: float) -> None:
        """Starts full.

        Args:
            bits_per_second: what the link carries.
        """
        self.bits_per_second = bits_per_second
        self._due = time.monotonic()

    def wait(self, num_bytes: int) -> None:
        """Waits until so many bytes may be sent."""
        now = time.monotonic()
        if self._due > now + _SHORTEST_SLEEP:
            time.sleep(self._due - now)
        self._due = max(self._due, now - _BURST_SECONDS) + 8 * num_bytes / self.bits_per_second
