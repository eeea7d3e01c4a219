"""Whether web messages complete in time, and the highest threshold of a queue at which they do."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from launch.colocation.sweep import Values
from rps_jax.colocation import Settings, with_discipline

_STEPS = 8
"""Halvings of the range in which the threshold is sought: to 1% of it or so."""
_MAY_LACK = {"mean": 0.0, "p99": 0.01}
"""Of which share of the messages it need not be known when they complete."""


class Target(NamedTuple):
    """In which time web messages must complete.

    Attributes:
        of: What must be within it: the mean, or 99 of 100 messages.
        ms: Milliseconds.
    """

    of: Literal["mean", "p99"]
    ms: float

    @property
    def what(self) -> str:
        """What must be within it, for people."""
        return "mean" if self.of == "mean" else "99th percentile"

    def verdict(self, found: Values) -> str:
        """Returns "ok" or "slow"; "open" where too many messages did not complete to tell."""
        if not found[self.of] <= self.ms:
            return "slow"
        return "open" if found["unfinished"] > _MAY_LACK[self.of] * found["messages"] else "ok"

    def highest_threshold(
        self, settings: Settings, measure: Callable[[Settings], Values], most: float
    ) -> tuple[float, Values]:
        """Returns the highest threshold that is fast enough, or 0, and what is measured there.

        Args:
            settings: Of the simulation.
            measure: Returns completion times in ms, `mean` and `p99`, and numbers of `messages`,
                and of those that are `unfinished`.
            most: Bytes, more than which never wait.
        """

        def at(threshold: float) -> Values:
            return measure(with_discipline(settings, "threshold", threshold_bytes=threshold))

        best = 0.0, at(0.0)
        low, high = math.log(settings.mtu_bytes), math.log(max(most, 2 * settings.mtu_bytes))
        if self.verdict(best[1]) != "ok":
            return best
        for _ in range(_STEPS):
            threshold = round(math.exp((low + high) / 2))
            found = at(threshold)
            if self.verdict(found) == "ok":
                best = threshold, found
                low = math.log(threshold)
            else:
                high = math.log(threshold)
        return best
