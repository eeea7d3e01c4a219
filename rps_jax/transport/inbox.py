"""What has arrived, by exchange, phase and source: filled as datagrams come, read when time is up.

Workers are not in step. The inbox takes datagrams of the exchange that is under way and of the
next; older ones are late and dropped, and newer ones show that this worker has fallen behind.
"""

import threading
import time
from collections import Counter

import numpy as np

from rps_jax.transport.packets import EVERYONE, Opened, Report, Sealer
from rps_jax.transport.peers import ALONE, HERE, Peers

PHASES = 2
_MOST_WAITING = 1 << 17
"""Datagrams that are kept before the first exchange."""
_GIVEN_UP = 1
"""Exchanges without a word after which a worker is not waited for until it is heard again."""


class _Phase:
    """What has arrived of one phase.

    Attributes:
        rows: uint8 `[num_workers, packets, length]`, by source.
        arrived: bool `[num_workers, packets]`: which rows there are.
        ended: bool `[num_workers]`: who has sent its last datagram.
        reported: bool `[num_workers]`: whose report is taken.
        latest: `[num_workers]`, the place of the row that came last of each; -1 before the first.
        first: `[num_workers]`, when the first row of each came, in seconds.
        last: the same of the last row.
    """

    def __init__(self, num_workers: int, packets: int, length: int) -> None:
        self.rows = np.empty((num_workers, packets, length), np.uint8)
        self.arrived = np.zeros((num_workers, packets), bool)
        self.ended = np.zeros(num_workers, bool)
        self.reported = np.zeros(num_workers, bool)
        self.latest = np.full(num_workers, -1)
        self.first = np.zeros(num_workers)
        self.last = np.zeros(num_workers)

    def clear(self) -> None:
        self.arrived[...] = False
        self.ended[...] = False
        self.reported[...] = False
        self.latest[...] = -1


class Inbox:
    """The datagrams for one worker.

    Attributes:
        counts: datagrams by what became of them: "accepted", "duplicate", "late", "early" (this
            worker has fallen behind), "stray" (genuine, but of no place here), "unlike" (of
            another pytree than is exchanged here, or of other servers), and the kinds that
            `Sealer.open` refuses.
        peers: who is in step with this worker.
    """

    def __init__(self, worker: int, num_workers: int, sealer: Sealer) -> None:
        """Is empty, and takes nothing until `open_exchange`.

        Args:
            worker: this worker.
            num_workers: how many there are.
            sealer: reads datagrams.
        """
        self.counts: Counter[str] = Counter()
        self.peers = Peers(num_workers)
        self._me, self._num_workers, self._sealer = worker, num_workers, sealer
        self._changed = threading.Condition()
        self._shape, self._digest = (0, 0), 0
        self._unlike = np.zeros(num_workers, bool)
        # Of this exchange and of the next, in turn.
        self._phases: list[list[_Phase]] = []
        self._exchange = -1
        # When the last was opened, of which this one's first datagrams may be, and when this one.
        self._opened = (time.monotonic(),) * 2
        self._frozen = [True] * PHASES
        self._ahead = -1
        self._silent = np.zeros(num_workers, int)
        self._heard = np.zeros(num_workers, bool)
        self._spoke = np.zeros(num_workers, bool)
        self._unmet = {other for other in range(num_workers) if other != worker}
        self._waiting: list[Opened] = []
        self._newest_kept, self._kept = 0, 0
        self._reports: list[Report] = []

    def meet(self, seconds: float) -> list[int]:
        """Waits until all others were heard, before the first exchange.

        Args:
            seconds: how long to wait at the most.

        Returns:
            Those to wait for again; nobody once another has begun: it has met all, or gone on.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._unmet, seconds)
            return [] if self._waiting else sorted(self._unmet)

    def give_up_unmet(self) -> None:
        """Does not wait for those who have never been heard, until they are."""
        with self._changed:
            self._silent[list(self._unmet)] = _GIVEN_UP

    def heard_nobody(self) -> bool:
        """Returns whether none of the others has been heard yet."""
        with self._changed:
            return len(self._unmet) == self._num_workers - 1 > 0

    def unlike(self) -> list[int]:
        """Returns of whom all that came in this exchange is of another pytree, or other servers."""
        with self._changed:
            arrived = np.any([phase.arrived for phase in self._of(self._exchange)], axis=(0, 2))
            return np.flatnonzero(self._unlike & ~arrived).tolist()

    def in_vain(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns who took part in this exchange in vain, and of whose model packets came in time.

        Returns:
            Bool `[num_workers]` each. In vain: ends of phases came, and none of these packets.
        """
        with self._changed:
            averaged: np.ndarray = np.any(self._of(self._exchange)[0].arrived, axis=1)
            return self._spoke & ~averaged, averaged

    def all_listen(self) -> bool:
        """Returns whether others were heard in this exchange, and none of them took part."""
        with self._changed:
            arrived = any(phase.arrived.any() for phase in self._of(self._exchange))
            return bool(self._heard.any() and not self._spoke.any() and not arrived)

    def open_exchange(
        self, exchange: int, packets: int, length: int, digest: int = 0
    ) -> tuple[int, bool]:
        """Goes on to an exchange; what is kept of it already counts.

        Args:
            exchange: its number, that after the last.
            packets: how many packets a block has.
            length: bytes of a packet.
            digest: of what is exchanged.

        Returns:
            The number of the exchange that the others are in, if this worker is elsewhere, and
            whether it is.
        """
        with self._changed:
            goal, before = self._goal(), self._exchange
            elsewhere = goal > exchange or goal < before
            self.peers.next_exchange(first=before < 0)
            self._digest = digest
            self._unlike[...] = False
            if (packets, length) != self._shape:
                self._shape = packets, length
                self._phases = [
                    [_Phase(self._num_workers, packets, length) for _ in range(PHASES)]
                    for _ in range(2)
                ]
            if elsewhere:
                exchange = self._ahead = goal
            if exchange != self._exchange + 1:
                self._of(exchange, clear=True)
            if self._exchange >= 0:
                self._silent[self._heard] = 0
                self._silent[~self._heard] += 1
            self._exchange = exchange
            self._opened = self._opened[1], time.monotonic()
            self._of(exchange + 1, clear=True)
            self._frozen = [False] * PHASES
            self._heard[...] = self._spoke[...] = False
            waiting, self._waiting = self._waiting, []
            for opened in waiting:
                self._file(opened)
            return exchange, elsewhere

    def _goal(self) -> int:
        """Returns the exchange that this worker is to be in."""
        if 0 <= (meeting := self.peers.meeting) < self._exchange - 1:
            return meeting
        return max(self._ahead, self._exchange)

    def _of(self, exchange: int, *, clear: bool = False) -> list[_Phase]:
        phases = self._phases[exchange % 2]
        if clear:
            for phase in phases:
                phase.clear()
        return phases

    def clear(self) -> None:
        """Forgets what has come."""
        with self._changed:
            self._shape, self._phases, self._waiting, self._kept = (0, 0), [], [], 0

    def take(self, datagrams: np.ndarray, seconds: np.ndarray | float = 0.0) -> None:
        """Files datagrams, or counts them as what they are.

        Args:
            datagrams: uint8 `[count, size]`, contiguous, in the order in which they came.
            seconds: when each came, `[count]`, on any clock.
        """
        genuine, refused = self._sealer.open(datagrams, seconds)
        with self._changed:
            self.counts.update(refused)
            for opened in genuine:
                said = self._greet(opened)
                if not len(said.places):
                    continue
                if self._phases:
                    self._file(said)
                else:
                    self._keep(said)

    def _greet(self, opened: Opened) -> Opened:
        """Takes note of who is there; returns what else they say to this worker."""
        expected = EVERYONE if opened.phase == 1 and not opened.last else self._me
        others = (opened.sources < self._num_workers) & (opened.sources != self._me)
        others &= opened.destination == expected
        if not others.all():
            self.counts["stray"] += int(np.count_nonzero(~others))
            opened = opened.only(others)
        if self._unmet:
            self._unmet.difference_update(opened.sources.tolist())
            self._changed.notify_all()
        if opened.last and (opened.places == HERE).any():
            self.counts["accepted"] += int(np.count_nonzero(opened.places == HERE))
            return opened.only(opened.places != HERE)
        return opened

    def _keep(self, opened: Opened) -> None:
        """Keeps datagrams until the shape of what is exchanged is known, by the first exchange."""
        if opened.exchange > self._newest_kept:
            self._newest_kept = opened.exchange
            self._waiting = [
                each for each in self._waiting if each.exchange >= self._newest_kept - 1
            ]
            self._kept = sum(len(each.places) for each in self._waiting)
        count = len(opened.places)
        if opened.exchange >= self._newest_kept - 1 and self._kept + count <= _MOST_WAITING:
            self._waiting.append(opened._replace(payloads=opened.payloads.copy()))
            self._kept += count

    def still_to_come(self) -> int:
        """Returns how many packets the worker that has sent least of the phase has left to send.

        The phase is the one that is under way, or the next after the exchange; a worker that is not
        waited for does not count.
        """
        with self._changed:
            if not self._phases:
                return 0
            ahead = [*self._of(self._exchange), self._of(self._exchange + 1)[0]]
            phase = ahead[self._frozen.index(False) if False in self._frozen else PHASES]
            return int((self._shape[0] - 1 - phase.latest)[self._awaited(phase)].max(initial=0))

    def take_reports(self) -> list[Report]:
        """Returns what others have reported since the last call, of this worker's packets."""
        with self._changed:
            reports, self._reports = self._reports, []
            return reports

    def received(self, phase: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns how much has come of a phase of this exchange, by source.

        Args:
            phase: 0 the reduce-scatter, 1 the all-gather.

        Returns:
            Packets, and the seconds from the first to the last, `[num_workers]`.
        """
        with self._changed:
            mine = self._of(self._exchange)[phase]
            # The clock of datagrams may be set meanwhile.
            most = time.monotonic() - self._opened[0]
            return mine.arrived.sum(1), np.minimum(mine.last - mine.first, most)

    def _file(self, opened: Opened) -> None:
        sources, count = opened.sources, len(opened.places)
        early = opened.exchange > self._exchange + 1
        heard = sources
        if opened.last:  # It says whether its worker is alone.
            followed = sources[self.peers.follows(sources, opened.places)]
            taking_part = sources[opened.places != ALONE]
            self._spoke[taking_part] = True
            if self.peers.find(taking_part, opened.exchange, self._exchange):
                self._changed.notify_all()
            if early and followed.size:
                self._ahead = max(self._ahead, opened.exchange)
                self._changed.notify_all()
            heard = followed if early else sources
        # A worker that is further behind goes ahead to this exchange; its older datagrams may be
        # anyone's who has kept them.
        if opened.exchange >= self._exchange - 1:
            self._heard[heard] = True
        if early:
            self.counts["early"] += count
            return
        if opened.exchange >= self._exchange - 1:
            self.peers.are_in_step(sources, opened.exchange)
        now = opened.exchange == self._exchange
        if opened.exchange < self._exchange or (now and self._frozen[opened.phase]):
            self.counts["late"] += count
            return
        phases = self._of(opened.exchange)
        phase = phases[opened.phase]
        if opened.last:
            self.counts["accepted"] += count
            self._file_reports(phase, opened)
        else:
            self._file_rows(phase, opened)
        past = (
            phases[: opened.phase] if now else [*self._of(self._exchange), *phases[: opened.phase]]
        )
        for each in past:
            self._end(each, sources)
        self._end(phase, sources if opened.last else sources[phase.arrived[sources, -1]])

    def _end(self, phase: _Phase, sources: np.ndarray) -> None:
        """Notes that no more is to be waited for from these sources."""
        if not phase.ended[sources].all():
            phase.ended[sources] = True
            self._changed.notify_all()

    def _file_reports(self, phase: _Phase, opened: Opened) -> None:
        for source, row in zip(opened.sources.tolist(), opened.payloads, strict=True):
            report = Report.of_row(row)
            # It is said several times.
            if report is not None and not phase.reported[source]:
                phase.reported[source] = True
                self._reports.append(report)

    def _file_rows(self, phase: _Phase, opened: Opened) -> None:
        packets, length = self._shape
        if opened.digest != self._digest:
            self.counts["unlike"] += len(opened.places)
            self._unlike[opened.sources] = True
            return
        here = (opened.places < packets) & (opened.payloads.shape[1] == length)
        if not here.all():
            self.counts["stray"] += int(np.count_nonzero(~here))
            opened = opened.only(here)
            if not here.any():
                return
        sources, places = opened.sources, opened.places
        # Where one source has several, the last assignment counts.
        begins = phase.latest[sources] < 0
        phase.first[sources[begins][::-1]] = opened.seconds[begins][::-1]
        phase.latest[sources], phase.last[sources] = places, opened.seconds
        fresh = ~phase.arrived[sources, places]
        new = opened if fresh.all() else opened.only(fresh)
        before = np.count_nonzero(phase.arrived)
        phase.rows[new.sources, new.places] = new.payloads
        phase.arrived[new.sources, new.places] = True
        accepted = int(np.count_nonzero(phase.arrived) - before)
        self.counts["accepted"] += accepted
        self.counts["duplicate"] += len(places) - accepted

    def close_phase(self, phase: int, seconds: float) -> tuple[np.ndarray, np.ndarray, bool]:
        """Waits for the others, and takes what has arrived; what comes later is dropped.

        Args:
            phase: 0 the reduce-scatter, 1 the all-gather.
            seconds: how long to wait at the most.

        Returns:
            The rows, uint8 `[num_workers, packets, length]`, valid until the next exchange; which
            of them arrived, bool `[num_workers, packets]`; and whether time ran out.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            mine = self._of(self._exchange)[phase]
            while True:
                awaited = self._awaited(mine)
                left = deadline - time.monotonic()
                if not awaited.any() or left <= 0 or self._goal() != self._exchange:
                    break
                self._changed.wait(left)
            self._frozen[phase] = True
            return mine.rows, mine.arrived.copy(), bool(awaited.any()) and left <= 0

    def _awaited(self, phase: _Phase) -> np.ndarray:
        """Returns who is waited for, bool `[num_workers]`."""
        awaited = ~phase.ended & (self._silent < _GIVEN_UP)
        awaited[self._me] = False
        return awaited
