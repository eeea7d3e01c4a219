"""How long to wait for the others: a little longer than it usually takes."""

import statistics
from collections import deque

_SAMPLES = 20
_FEWEST = 5
_MEDIANS, _DEVIATIONS = 1.5, 8.0
_SHORTEST = 0.2


class Deadline:
    """A deadline that follows what phases take.

    It is 1.5 medians and 8 median absolute deviations of them, at least 0.2 s; after one that was
    too short, at least twice that.
    """

    def __init__(self, longest: float) -> None:
        """Has seen nothing yet: the deadline is the longest.

        Args:
            longest: seconds.
        """
        self._longest = longest
        self._seconds: deque[float] = deque(maxlen=_SAMPLES)
        self._least = _SHORTEST

    def seconds(self) -> float:
        """Returns how long to wait now."""
        if len(self._seconds) < _FEWEST:
            return self._longest
        median = statistics.median(self._seconds)
        deviation = statistics.median(abs(each - median) for each in self._seconds)
        return min(self._longest, max(self._least, _MEDIANS * median + _DEVIATIONS * deviation))

    def took(self, seconds: float) -> None:
        """Takes note of a phase that ended with all that was awaited."""
        self._seconds.append(seconds)
        self._least = _SHORTEST

    def was_too_short(self, seconds: float) -> None:
        """Takes note of a phase that ran out of time.

        Args:
            seconds: its deadline.
        """
        self._seconds.append(2 * seconds)
        self._least = 2 * seconds
