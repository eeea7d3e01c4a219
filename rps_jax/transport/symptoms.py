"""What goes wrong in silence, and is said: each kind once."""

import time
import warnings
from collections.abc import Sequence

import numpy as np

from rps_jax.transport.inbox import Inbox

_IN_A_ROW, _PACKETS_IN_A_ROW = 5, 20
"""Exchanges, and packets in them, after which it is no chance that none is averaged."""


class Symptoms:
    """Looks at each exchange of one worker."""

    def __init__(self, worker: int, num_workers: int, mtu: int) -> None:
        """Has said nothing yet.

        Args:
            worker: this worker.
            num_workers: how many there are.
            mtu: bytes of the largest packet that the network is said to carry whole.
        """
        self._me, self._mtu, self._started = worker, mtu, time.monotonic()
        self._said: set[str] = set()
        self._in_vain = np.zeros(num_workers, int)
        self._behind = 0

    def look(self, inbox: Inbox, packets: int, path_mtu: int | None, *, behind: bool) -> None:
        """Warns of what an exchange shows that was not said yet.

        Args:
            inbox: what has arrived.
            packets: how many a block has.
            path_mtu: bytes of the largest packet on the narrowest way, if it is too narrow.
            behind: whether this worker had fallen behind the others.
        """
        if inbox.heard_nobody():
            waited = time.monotonic() - self._started
            self._say(
                "nobody",
                f"has heard no other in {waited:.1f} s and goes on alone; {_counted(inbox)}",
            )
        unlike = inbox.unlike()
        if unlike:
            self._say(
                "unlike",
                f"averages nothing of {_named(unlike)}: another pytree, seed, assignment, mtu or "
                "number of workers is exchanged there",
            )
        if path_mtu:
            self._say(
                "cut",
                f"has a way to others whose packets have {path_mtu} bytes at the most: datagrams "
                f"are cut there, and lost with any piece; mtu={path_mtu} of all workers keeps them "
                "whole",
            )
        self._behind = self._behind + 1 if behind else 0
        if self._behind >= _IN_A_ROW:
            self._say(
                "behind",
                f"has fallen behind in {self._behind} exchanges in a row, and only listened: the "
                "others do not wait so long for it; a longer deadline of all workers may help",
            )
        in_vain, averaged = inbox.in_vain()
        self._in_vain[in_vain] += 1
        self._in_vain[averaged] = self._in_vain[unlike] = 0
        enough = max(_IN_A_ROW, _PACKETS_IN_A_ROW / packets)
        if (others := np.flatnonzero(self._in_vain >= enough)).size:
            self._say(
                "in vain",
                f"hears {_named(others.tolist())}, but no packet of theirs was averaged in "
                f"{self._in_vain[others].min()} exchanges: the way may not carry packets of "
                f"{self._mtu} bytes (mtu), or they come later than the deadline; {_counted(inbox)}",
            )

    def _say(self, kind: str, what: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            warnings.warn(f"worker {self._me} {what}", stacklevel=4)


def _named(workers: Sequence[int]) -> str:
    return ", ".join(map(str, workers))


def _counted(inbox: Inbox) -> str:
    came = [f"{count} {kind}" for kind, count in dict(inbox.counts).items() if count]
    return f"datagrams that came: {', '.join(came) or 'none'}"
