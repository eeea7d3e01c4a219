"""The rate at which to send, found by what the others report to have received.

A phase carries a fraction of what was sent: less than 1 where the network drops at random, and less
the faster one sends once it is full. The two are told apart by comparing rates: trials a little
faster (is all carried still?) and, where less arrives than usual, slower (does that help?). What is
dropped at the lower rate as well does not count.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rps_jax.transport.packets import Report

_START = 100e6
"""Bits a second before any report has come."""
_LEAST, _MOST = 1e6, 100e9
"""Bits a second, whatever is reported."""
_BUDGET, _NOTHING = 0.01, 0.002
"""The fraction that the network may drop because of this rate before the rate falls; and while it
rises."""
_DEVIATIONS = 2.5
"""By how many standard deviations less may arrive by chance, as random drops have it."""
_BELOW_CAPACITY = 0.98
"""The part of what was carried of a rate that was too fast, at which the rate settles."""
_LARGEST_STEP, _SMALLEST_STEP = 0.25, 0.04
"""How much faster a trial is while the rate rises, and when a limit was found."""
_SLOWER = 0.9
"""A slower trial: this part of the rate, or of what was carried of one that is too fast."""
_HOLD = 32
"""Phases between two trials once a limit was found."""
_PATIENCE = 3
"""Phases after which no report of a trial is awaited any more."""
_PATIENCE_WITH_LOW = 2
"""Phases in which less arrives than usual after which a slower rate is tried."""
_MUCH_LESS = 0.5
"""The part of what usually arrives below which it is tried after one."""
_WEIGHT = 0.1
"""Of the newest phase in the mean of what usually arrives."""
_LATE, _LATE_SECONDS = 1.1, 2e-3
"""How much longer packets may take to come than to be sent before they count as waiting in a queue:
this many times as long, and these seconds."""
_AS_OTHERS = 0.05
"""By how much less than at the middle destination may arrive at one that is not slow itself."""
_CUT, _CUT_SECONDS = 0.7, 0.05
"""Where the packets that came took so much less than those that were sent, the phase was closed
before it was over."""


class Carried(NamedTuple):
    """What the network carried of what a worker sent in a phase.

    Attributes:
        fraction: in [0, 1].
        packets: by how many packets that is told.
    """

    fraction: float
    packets: int


def carried(packets: int, seconds: float, reports: Sequence[Report]) -> Carried:
    """Returns what most of the destinations got in time.

    A destination that got much less than the others is slow itself, and does not count.

    Args:
        packets: sent to each destination, at least one.
        seconds: from the first to the last.
        reports: at least one, of any content.
    """

    def in_time(report: Report) -> float:
        fraction = min(report.packets / packets, 1.0)
        # Packets that come in slower than they went out are waiting in a queue.
        slow = report.seconds > _LATE * seconds + _LATE_SECONDS
        # Of a phase that was not waited for, what came until then tells.
        cut = 0 < report.seconds < _CUT * seconds - _CUT_SECONDS
        return min(fraction * seconds / report.seconds, 1.0) if slow or cut else fraction

    fractions = [in_time(report) for report in reports]
    middle = statistics.median_high(fractions)
    counted = [each for each in fractions if each >= middle - _AS_OTHERS]
    return Carried(statistics.fmean(counted), packets * len(counted))


class Rate:
    """The rate of one worker: `next` before each phase, and later `saw` of what became of it.

    A phase's reports come while the next is under way: a trial is followed by a phase at the lower
    of the two rates.
    """

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._rate, self._least = _START, _LEAST
        # The fraction that is carried at this rate; and what came after it, where it is lower.
        self._usual: float | None = None
        self._low: list[float] = []
        self._trial: float | None = None
        self._age = 0
        self._hold, self._step, self._faster_next = 0, _LARGEST_STEP, True

    def next(self, least: float = _LEAST) -> float:
        """Returns the bits a second of the next phase.

        Args:
            least: what it is at least.
        """
        self._least = max(least, _LEAST)
        self._rate = max(self._rate, self._least)
        if self._trial is not None:
            self._trial = max(self._trial, self._least)
        if self._trial is None:
            self._hold -= 1
            if self._hold >= 0 or self._usual is None or self._low:
                return self._rate
            self._try(self._rate * (1 + self._step if self._faster_next else _SLOWER))
        assert self._trial is not None
        self._age += 1
        if self._age == 1:
            return self._trial
        slower = min(self._trial, self._rate)
        if self._age > _PATIENCE:
            # Without reports it is not known to be better, but the faster one is known to be bad.
            self._settle(slower, _HOLD if slower == self._rate else _HOLD // 4)
        return slower

    def saw(self, rate: float, seen: Carried) -> None:
        """Takes note of what was carried of a phase.

        Args:
            rate: of that phase.
            seen: what was carried.
        """
        if rate == self._trial:
            if rate > self._rate:
                self._saw_faster(rate, seen)
            else:
                self._saw_slower(rate, seen)
        elif (rate == self._rate and self._trial is None) or rate < (self._trial or 0.0):
            self._saw_usual(seen)

    def did_not_reach(self) -> None:
        """Takes note that the sender itself cannot send as fast: its card or its processor."""
        if self._trial is not None and self._trial > self._rate:
            self._settle(self._rate, _HOLD // 4)

    def saw_nothing(self) -> None:
        """Takes note that for some phases the others were heard, but none of their reports."""
        self._usual = None
        self._settle(self._rate / 2, 0)

    def _saw_usual(self, seen: Carried) -> None:
        if self._usual is None:
            # That it is not the rate is for a slower trial to tell.
            self._usual = 1.0
            patience = 1
        else:
            patience = _PATIENCE_WITH_LOW
        if self._as_usual(seen):
            # The first is all that is known yet.
            weight = 1.0 if patience == 1 else _WEIGHT
            self._usual += weight * (seen.fraction - self._usual)
            self._low = []
            return
        self._low.append(seen.fraction)
        if seen.fraction < _MUCH_LESS * self._usual:
            patience, self._low = 1, [seen.fraction]
        if len(self._low) >= patience and self._trial is None:
            self._try(self._carried_of(self._rate))

    def _saw_faster(self, rate: float, seen: Carried) -> None:
        assert self._usual is not None
        arrived = seen.fraction / self._usual
        if arrived >= 1 - _NOTHING - _chance(seen):
            self._settle(rate, 0)
            self._step = min(2 * self._step, _LARGEST_STEP)
            return
        if self._step > _SMALLEST_STEP and arrived >= 1 - 2 * (_NOTHING + _chance(seen)):
            # Too little to tell from chance, and much less than the step: a smaller one will tell.
            self._step = max(self._step / 2, _SMALLEST_STEP)
            self._settle(self._rate, 1)
            return
        self._settle(max(_BELOW_CAPACITY * rate * arrived, _SLOWER * self._rate), _HOLD)
        self._step, self._faster_next = _SMALLEST_STEP, False

    def _saw_slower(self, rate: float, seen: Carried) -> None:
        assert self._usual is not None
        before = statistics.fmean(self._low) if self._low else self._usual
        arrived = before / max(seen.fraction, 1e-3)
        if arrived >= 1 - _BUDGET - _chance(seen):
            # It drops as much when one is slower: that is how this network is.
            self._usual = (before + seen.fraction) / 2
            self._settle(self._rate, 1)
        elif self._as_usual(seen) and self._rate * arrived > rate / _SLOWER**0.5:
            self._usual = max(self._usual, seen.fraction)
            self._settle(_BELOW_CAPACITY * self._rate * arrived, _HOLD // 4)
        else:
            # Even that was more than is carried.
            self._rate, self._low = rate, [seen.fraction]
            self._try(self._carried_of(rate))
        self._faster_next = True

    def _as_usual(self, seen: Carried) -> bool:
        """Returns whether about as much was carried as usual."""
        assert self._usual is not None
        return seen.fraction >= self._usual * (1 - _BUDGET - _chance(seen))

    def _carried_of(self, rate: float) -> float:
        """Returns a little less than what is carried of a rate that is too fast."""
        assert self._usual is not None
        return rate * _SLOWER * max(statistics.fmean(self._low) / self._usual, 0.1)

    def _try(self, rate: float) -> None:
        self._trial, self._age = min(max(rate, self._least), _MOST), 0

    def _settle(self, rate: float, hold: int) -> None:
        self._rate, self._trial = min(max(rate, self._least), _MOST), None
        self._low, self._hold = [], hold


def _chance(seen: Carried) -> float:
    """Returns by how much a fraction may be lower by chance."""
    return _DEVIATIONS * math.sqrt(seen.fraction * (1 - seen.fraction) / seen.packets)
