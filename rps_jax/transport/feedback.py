"""The pace of a worker, by what the others report of the packets that it has sent."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rps_jax.transport.pacing import Pacer
from rps_jax.transport.packets import Report
from rps_jax.transport.rate import Rate, carried

_REACHED = 0.85
"""The share of a rate that has to be reached for it to be that."""
_SHARE_OF_LONGEST = 0.8
"""The part of what the others wait at the most by which a phase may take longer than the last."""
_WITHOUT_REPORTS = 4
"""Phases without a report after which the rate may be what keeps them away."""


class _Sent(NamedTuple):
    rate: float
    packets: int
    seconds: float


class Feedback:
    """Sets the rate of a pacer before each phase."""

    def __init__(self, pacer: Pacer, rate: Rate, longest: float = math.inf) -> None:
        """Has heard nothing yet.

        Args:
            pacer: whose rate it sets.
            rate: which finds it.
            longest: seconds that the others wait for a phase at the most.
        """
        self._pacer, self._rate, self._longest = pacer, rate, longest
        self._pacer.bits_per_second = rate.next()
        self._sent: dict[tuple[int, int], _Sent] = {}
        self._unheard = 0

    def sent(self, exchange: int, phase: int, packets: int, num_bytes: int, seconds: float) -> None:
        """Takes note of a phase that was sent, and sets the rate of the next.

        Args:
            exchange: number of the exchange.
            phase: 0 the reduce-scatter, 1 the all-gather.
            packets: to each destination.
            num_bytes: to all of them.
            seconds: from the first to the last.
        """
        if 8 * num_bytes < _REACHED * self._pacer.bits_per_second * seconds:
            self._rate.did_not_reach()
        # Reports come with the next phase, or not at all.
        self._sent = dict(list(self._sent.items())[-2:])
        self._sent[exchange, phase] = _Sent(self._pacer.bits_per_second, packets, seconds)
        least = 8 * num_bytes / (seconds + _SHARE_OF_LONGEST * self._longest)
        self._pacer.bits_per_second = self._rate.next(least)

    def heard(self, reports: Sequence[Report], *, anyone: bool) -> None:
        """Takes note of what was reported during a phase.

        Args:
            reports: of phases before.
            anyone: whether anyone was heard at all.
        """
        of_phases: dict[tuple[int, int], list[Report]] = {}
        for report in reports:
            if not report.packets:
                continue  # That worker was elsewhere when they came.
            of_phases.setdefault((report.exchange, report.phase), []).append(report)
        known = of_phases.keys() & self._sent.keys()
        for place in sorted(known):
            sent = self._sent.pop(place)
            self._rate.saw(sent.rate, carried(sent.packets, sent.seconds, of_phases[place]))
        if known or not anyone:
            self._unheard = 0
            return
        self._unheard += 1
        if self._unheard >= _WITHOUT_REPORTS:
            self._unheard = 0
            self._rate.saw_nothing()
