"""What has arrived, by exchange, phase and source: filled as datagrams come, read when time is up.

Workers are not in step. The inbox takes datagrams of the exchange that is under way and of the
next; older ones are late and dropped, and newer ones show that this worker has fallen behind.
"""

import threading
import time
from collections import Counter

import numpy as np

from rps_jax.transport.packets import Header, Refused, Sealer

PHASES = 2
_MOST_WAITING = 1 << 17
"""Datagrams that are kept before the first exchange."""
_GIVEN_UP = 2
"""Exchanges without a word after which a worker is not waited for until it is heard again."""


class _Phase:
    """What has arrived of one phase.

    Attributes:
        rows: uint8 `[num_workers, packets, length]`, by source.
        arrived: bool `[num_workers, packets]`: which rows there are.
        ended: bool `[num_workers]`: who has sent its last datagram.
    """

    def __init__(self, num_workers: int, packets: int, length: int) -> None:
        self.rows = np.empty((num_workers, packets, length), np.uint8)
        self.arrived = np.zeros((num_workers, packets), bool)
        self.ended = np.zeros(num_workers, bool)

    def clear(self) -> None:
        self.arrived[...] = False
        self.ended[...] = False


class Inbox:
    """The datagrams for one worker.

    Attributes:
        counts: datagrams by what became of them: "accepted", "duplicate", "late", and the kinds of
            `Refused`, "stray" (accepted by the tag, but of no place here) among them.
    """

    def __init__(self, worker: int, num_workers: int, sealer: Sealer) -> None:
        """Is empty, and takes nothing until `open_exchange`.

        Args:
            worker: this worker.
            num_workers: how many there are.
            sealer: reads datagrams.
        """
        self.counts: Counter[str] = Counter()
        self._me, self._num_workers, self._sealer = worker, num_workers, sealer
        self._changed = threading.Condition()
        self._shape = (0, 0)
        # Of this exchange and of the next, in turn.
        self._phases: list[list[_Phase]] = []
        self._exchange = -1
        self._frozen = [True] * PHASES
        self._ahead = -1
        self._silent = np.zeros(num_workers, int)
        self._heard = np.zeros(num_workers, bool)
        self._unmet = {other for other in range(num_workers) if other != worker}
        self._waiting: list[bytes] = []

    @property
    def met_all(self) -> bool:
        """Whether every other worker has been heard at least once."""
        return not self._unmet

    def open_exchange(self, exchange: int, packets: int, length: int) -> tuple[int, bool]:
        """Goes on to an exchange; what is kept of it already counts.

        Args:
            exchange: its number, larger than that of the last.
            packets: how many packets a block has.
            length: bytes of a packet.

        Returns:
            The number of the exchange that the others are in, if this worker has fallen behind,
            and whether it has.
        """
        with self._changed:
            behind = self._ahead > exchange
            if (packets, length) != self._shape:
                self._shape = packets, length
                self._phases = [
                    [_Phase(self._num_workers, packets, length) for _ in range(PHASES)]
                    for _ in range(2)
                ]
            if behind:
                exchange = self._ahead
            if exchange != self._exchange + 1:
                self._of(exchange, clear=True)
            self._exchange = exchange
            self._of(exchange + 1, clear=True)
            self._frozen = [False] * PHASES
            self._silent[self._heard] = 0
            self._silent[~self._heard] += 1
            self._heard[...] = False
            waiting, self._waiting = self._waiting, []
            for datagram in waiting:
                self._file(*self._sealer.open(memoryview(datagram)))
            return exchange, behind

    def _of(self, exchange: int, *, clear: bool = False) -> list[_Phase]:
        phases = self._phases[exchange % 2]
        if clear:
            for phase in phases:
                phase.clear()
        return phases

    def take(self, datagram: memoryview) -> None:
        """Files a datagram, or counts it as what it is."""
        try:
            header, payload = self._sealer.open(datagram)
        except Refused as refused:
            self.counts[refused.kind] += 1
            return
        with self._changed:
            if not self._phases and len(self._waiting) < _MOST_WAITING:
                # The shape of what is exchanged is not known before the first exchange.
                self._waiting.append(bytes(datagram))
                kind = "accepted"
            else:
                kind = self._file(header, payload)
            self.counts[kind] += 1

    def _file(self, header: Header, payload: memoryview) -> str:
        here = header.destination == self._me and header.source < self._num_workers
        if not here or header.source == self._me:
            return "stray"
        self._heard[header.source] = True
        self._unmet.discard(header.source)
        if header.exchange > self._exchange + 1:
            self._ahead = max(self._ahead, header.exchange)
            self._changed.notify_all()
            return "early"
        now = header.exchange == self._exchange
        if header.exchange < self._exchange or (now and self._frozen[header.phase]):
            return "late"
        phases = self._of(header.exchange)
        phase, source = phases[header.phase], header.source
        for earlier in phases[: header.phase]:
            earlier.ended[source] = True
        if header.last:
            phase.ended[source] = True
        else:
            packets, length = self._shape
            if header.place >= packets or len(payload) != length:
                return "stray"
            if phase.arrived[source, header.place]:
                return "duplicate"
            phase.rows[source, header.place] = np.frombuffer(payload, np.uint8)
            phase.arrived[source, header.place] = True
            phase.ended[source] |= header.place == packets - 1
        if phase.ended[source]:
            self._changed.notify_all()
        return "accepted"

    def close_phase(self, phase: int, seconds: float) -> tuple[np.ndarray, np.ndarray, bool]:
        """Waits for the others, and takes what has arrived; what comes later is dropped.

        Args:
            phase: 0 the reduce-scatter, 1 the all-gather.
            seconds: how long to wait at the most.

        Returns:
            The rows, uint8 `[num_workers, packets, length]`, valid until the exchange after the
            next; which of them arrived, bool `[num_workers, packets]`; and whether time ran out.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            mine = self._of(self._exchange)[phase]
            while True:
                awaited = ~mine.ended & (self._silent < _GIVEN_UP)
                awaited[self._me] = False
                left = deadline - time.monotonic()
                if not awaited.any() or left <= 0 or self._ahead > self._exchange:
                    break
                self._changed.wait(left)
            self._frozen[phase] = True
            return mine.rows, mine.arrived.copy(), bool(awaited.any()) and left <= 0
