"""One worker's place in a network of workers that exchange their models by datagrams."""

import hashlib
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax.draw import Assignment
from rps_jax.rules import AverageModels
from rps_jax.rules.lossy import MessageDtype
from rps_jax.transport.carrier import Datagrams, Exchanged, average, is_traced
from rps_jax.transport.catching_up import CatchingUp
from rps_jax.transport.deadline import Deadline
from rps_jax.transport.feedback import Feedback
from rps_jax.transport.inbox import PHASES, Inbox
from rps_jax.transport.layout import Layout
from rps_jax.transport.pacing import Pacer
from rps_jax.transport.packets import EVERYONE, Report, Sealer, payload_of
from rps_jax.transport.peers import ALONE, HERE
from rps_jax.transport.rate import Rate
from rps_jax.transport.seconds import Seconds, Stopwatch
from rps_jax.transport.sockets import MOST_SEGMENTS, Address, DatagramSocket
from rps_jax.transport.symptoms import Symptoms

_CHUNK_SECONDS = 1.2e-3
"""For how long one destination is sent to before it is the next one's turn."""
_LONGEST_PAUSE, _SHORTEST_PAUSE = 16e-3, 0.2e-3
"""Seconds in which datagrams gather before they are looked at: each look costs as much as many."""
_DEADLINE_SHARE = 16
"""The part of a deadline that such a pause may take."""
_GATHERED_BYTES = 1 << 19
"""How many may gather: about as many as a core's cache holds."""
_BUFFER_SHARE = 4
"""The part of the receive buffer that may fill meanwhile: the system counts more than the bytes."""
_SEALED = 3 * MOST_SEGMENTS
"""Datagrams for each destination that are made at a time."""
_AWAY = 8
"""Exchanges that a worker has missed when its model is too old for the others."""
_LAST_WORDS = 3
"""How often the end of a phase is said: two of them may be dropped."""
_HERE_SECONDS = 0.25
"""After which a worker says again that it is there, before its first exchange."""
_NOTHING = np.empty((1, 0), np.uint8)
"""The payload of a datagram that has none."""
_Chunk = tuple[int, np.ndarray]
"""Datagrams, and the worker that they are for."""


class Network:
    """One worker's end of the network; made by `rps_jax.transport.join`.

    Attributes:
        worker: this worker's index.
        num_workers: how many there are.
        payload_bytes: of a block in a datagram at the most.
        records: what was exchanged, without the rows, oldest first; empty unless `record`.
    """

    def __init__(
        self,
        socket: DatagramSocket,
        addresses: Sequence[Address],
        worker: int,
        sealer: Sealer,
        *,
        seed: int,
        assignment: Assignment,
        mtu: int,
        link_rate: float | None,
        deadline: float,
        start_timeout: float,
        record: bool,
    ) -> None:
        """Takes its parts; see `join`."""
        self.worker, self.num_workers = worker, len(addresses)
        self.payload_bytes = payload_of(mtu)
        self.records: list[Exchanged] = []
        self._socket, self._addresses, self._sealer = socket, addresses, sealer
        self._others = [
            (worker + distance) % self.num_workers for distance in range(1, self.num_workers)
        ]
        self._seed, self._assignment, self._record = seed, assignment, record
        self._start_timeout, self._mtu = start_timeout, mtu
        self._pacer = Pacer(link_rate or 1.0)
        self._feedback = Feedback(self._pacer, Rate(), deadline) if link_rate is None else None
        self._reports = [_NOTHING] * self.num_workers
        self._deadlines = [Deadline(deadline) for _ in range(PHASES)]
        self._longest_pause = min(_LONGEST_PAUSE, deadline / _DEADLINE_SHARE)
        self._inbox = Inbox(worker, self.num_workers, sealer)
        self._next, self._sent = 0, -1
        self._catching_up = CatchingUp()
        self._stopwatch, self._opening = Stopwatch(), 0.0
        self._symptoms: Symptoms | None = None  # Until the first exchange.
        self._exchanging = threading.Lock()
        self._closed = threading.Event()
        self._failure: Exception | None = None
        self._receiver = threading.Thread(target=self._receive, daemon=True)

    def __enter__(self) -> Self:
        if self._receiver.ident is not None:
            raise RuntimeError("the network was entered before: expected one `with` for each join")
        self._receiver.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._receiver.join()
        self._socket.close()
        # Compiled programs refer to this network for as long as JAX keeps them.
        self._inbox.clear()

    def average_models(
        self,
        params: Any,
        *,
        message_dtype: MessageDtype | None = None,
        step: jax.Array | int | None = None,
    ) -> Any:
        """RPS over the network: averages the workers' models; what is missed stays one's own.

        To be called by every worker with pytrees of the same structure, shapes and dtypes. Returns
        when the exchange is over; inside of a compiled function, it is for the caller to wait.

        Args:
            params: this worker's pytree of arrays, floating or integer.
            message_dtype: what wider floating values are rounded to in messages, "bfloat16" or
                "float16"; see `rps_jax.rules.AverageModels`.
            step: number of this exchange, the same on every worker, from which the rounding draws;
                by default counted here, but inside of a compiled function.

        Returns:
            The same structure, shapes and dtypes.

        Raises:
            RuntimeError: the network is not entered as a context manager, or was left.
            TypeError: a leaf that has no average.
            ValueError: a leaf that is cut over several devices, another dtype of messages, or no
                step where one is needed.
        """
        self._check_joined()
        rule = AverageModels(message_dtype=message_dtype)
        if step is None:
            if message_dtype is not None and is_traced(params):
                raise ValueError(
                    "step=None: expected the number of the exchange, with message_dtype inside of "
                    "a compiled function"
                )
            step = self._next
        for path, leaf in jax.tree.leaves_with_path(params):
            traced = isinstance(leaf, jax.core.Tracer)
            if isinstance(leaf, jax.Array) and not traced and len(leaf.sharding.device_set) > 1:
                raise ValueError(
                    f"leaf {jax.tree_util.keystr(path) or 'params'} lies on "
                    f"{len(leaf.sharding.device_set)} devices: expected one, this worker's"
                )
        return average(Datagrams(self), rule, params, jnp.int32(step))

    @property
    def next_exchange(self) -> int:
        """The number that the next exchange has, unless the others are elsewhere."""
        return self._next

    @property
    def listens(self) -> bool:
        """Whether this worker was away, and takes over the others' model before it takes part."""
        return self._catching_up.listens

    @property
    def link_rate(self) -> float:
        """Bits a second at which this worker sends now."""
        return self._pacer.bits_per_second

    @property
    def bytes_sent(self) -> int:
        """Bytes of all datagrams sent until now: payload, headers and tags, without those of IP."""
        return self._socket.bytes_sent

    @property
    def counts(self) -> dict[str, int]:
        """How many datagrams came, by what became of them."""
        return dict(self._inbox.counts)

    @property
    def receive_buffer(self) -> int:
        """Bytes that the system grants for datagrams that wait to be received."""
        return self._socket.receive_buffer

    def exchange(self, step: int, rows: np.ndarray, layout: Layout) -> Exchanged:
        """Takes part in one exchange of packets.

        Args:
            step: number of this worker's first exchange, unless the others are elsewhere; those
                after it are numbered one by one.
            rows: uint8 `[num_workers, packets, length]`, this worker's blocks.
            layout: of the packets.

        Raises:
            RuntimeError: the network is not entered as a context manager, or was left, or another
                exchange of it is under way.
        """
        self._check_joined()
        if not self._exchanging.acquire(blocking=False):
            raise RuntimeError(
                "two exchanges of one network at the same time: expected one after the other, of "
                "one thread and one device"
            )
        try:
            return self._exchange(step, rows, layout)
        finally:
            self._exchanging.release()

    def _exchange(self, step: int, rows: np.ndarray, layout: Layout) -> Exchanged:
        me, n = self.worker, self.num_workers
        self._stopwatch, opening = Stopwatch(), self._opening
        if self._symptoms is None:
            self._next, self._symptoms = step, Symptoms(me, n, self._mtu)
            self._meet(step)
        asked = self._next
        digest = self._digest(layout)
        number, elsewhere = self._inbox.open_exchange(asked, layout.packets, layout.length, digest)
        self._next = number + 1
        if number - asked >= _AWAY or self._inbox.peers.returned:
            self._catching_up.begin(self._of_others(layout.packets))
        alone = self._inbox.peers.alone
        # No exchange is sent twice; and who is alone sends none but the very first.
        listens = elsewhere or self._catching_up.listens or number <= self._sent
        listens |= alone and number > 0
        away = self._catching_up.listens
        self._sent = self._sent if listens else number
        shift = self._shift(number)
        blocks = {other: rows[(other - shift) % n] for other in self._others}

        if not listens:
            self._send(0, number, layout.packets, self._scatter(number, digest, blocks))
        self._end_phase(0, number, apart=alone or listens)
        contributions, received = self._close_phase(0, sent=not listens)
        contributions[me], received[me] = rows[(me - shift) % n], True
        average = layout.average(contributions, received)
        self._stopwatch.lap("averaging")

        if not listens:
            self._send(1, number, layout.packets, self._gather(number, digest, average))
        self._end_phase(1, number, apart=alone or listens)
        averages, gathered = self._close_phase(1, sent=not listens)
        if listens:
            of_blocks = np.roll(gathered, -shift, axis=0)
            self._catching_up.heard(of_blocks, all_listen=self._inbox.all_listen())
        averages[me], gathered[me] = average, True
        behind = elsewhere and number > asked
        self._symptoms.look(self._inbox, layout.packets, self._socket.path_mtu, behind=behind)
        seconds = Seconds(**self._stopwatch.seconds, opening=self._opening - opening)
        seen = Exchanged(number, averages, received, gathered, shift, away, seconds)
        if self._record:
            self.records.append(seen._replace(rows=np.empty(0, np.uint8)))
        return seen

    def _check_joined(self) -> None:
        if self._failure is not None:
            said = f"datagrams are no longer received: {self._failure!r}"
            raise RuntimeError(said) from self._failure
        if not self._receiver.is_alive():
            raise RuntimeError(
                "the network is not joined: expected exchanges inside of "
                "`with transport.join(...) as network:`, and to be waited for there "
                "(jax.block_until_ready)"
            )

    def _meet(self, exchange: int) -> None:
        """Says that this worker is there, until all others are: what is sent earlier is lost."""
        unmet, until = self._others, time.monotonic() + self._start_timeout
        while unmet and (left := until - time.monotonic()) > 0:
            for other in unmet:
                here = self._sealer.seal(0, exchange, self.worker, other, _NOTHING, HERE, last=True)
                self._socket.send(here, self._addresses[other])
            unmet = self._inbox.meet(min(left, _HERE_SECONDS))
        self._inbox.give_up_unmet()

    def _close_phase(self, phase: int, *, sent: bool) -> tuple[np.ndarray, np.ndarray]:
        began, deadline = time.monotonic(), self._deadlines[phase]
        allowed = deadline.seconds()
        rows, arrived, timed_out = self._inbox.close_phase(phase, allowed)
        if timed_out:
            deadline.was_too_short(allowed)
        else:
            deadline.took(time.monotonic() - began)
        self._stopwatch.lap("waiting")
        packets, seconds = self._inbox.received(phase)
        self._reports = [
            Report(self._next - 1, phase, *of_source).to_row()
            for of_source in zip(packets.tolist(), seconds.tolist(), strict=True)
        ]
        reports = self._inbox.take_reports()
        if self._feedback is not None and sent:
            self._feedback.heard(reports, anyone=bool(packets.any()))
        return rows, arrived

    def _scatter(
        self, exchange: int, digest: int, blocks: dict[int, np.ndarray]
    ) -> Iterator[_Chunk]:
        """Yields a block for each destination."""
        packets = len(next(iter(blocks.values()), _NOTHING))
        for start in range(0, packets, _SEALED):
            stop = start + _SEALED
            yield from self._in_turn(
                {
                    other: self._sealer.seal(
                        0, exchange, self.worker, other, rows[start:stop], start, digest=digest
                    )
                    for other, rows in blocks.items()
                }
            )

    def _gather(self, exchange: int, digest: int, average: np.ndarray) -> Iterator[_Chunk]:
        """Yields one block for every destination."""
        for start in range(0, len(average), _SEALED):
            rows = average[start : start + _SEALED]
            sealed = self._sealer.seal(
                1, exchange, self.worker, EVERYONE, rows, start, digest=digest
            )
            yield from self._in_turn(dict.fromkeys(self._others, sealed))

    def _in_turn(self, sealed: dict[int, np.ndarray]) -> Iterator[_Chunk]:
        """Yields equally many datagrams for each destination, chunk by chunk in turn."""
        if not sealed:
            return
        packets, size = next(iter(sealed.values())).shape
        step = int(self._pacer.bits_per_second * _CHUNK_SECONDS / (8 * size))
        step = min(max(step, 1), MOST_SEGMENTS)
        for start in range(0, packets, step):
            for other, datagrams in sealed.items():
                yield other, datagrams[start : start + step]

    def _send(self, phase: int, exchange: int, packets: int, chunks: Iterable[_Chunk]) -> None:
        """Sends the packets of a phase."""
        began, num_bytes = time.monotonic(), 0
        for other, chunk in chunks:
            self._stopwatch.lap("sealing")
            self._pacer.wait(chunk.size)
            self._stopwatch.lap("pacing")
            self._socket.send(chunk, self._addresses[other])
            num_bytes += chunk.size
            self._stopwatch.lap("sending")
        if self._feedback is not None:
            seconds = time.monotonic() - began
            self._feedback.sent(exchange, phase, packets, num_bytes, seconds)

    def _end_phase(self, phase: int, exchange: int, *, apart: bool) -> None:
        """Sends the end of a phase, which says what came of the one before.

        A worker that only listens says it too: the others wait for it, and it stays in step.

        Args:
            phase: 0 the reduce-scatter, 1 the all-gather.
            exchange: number of the exchange.
            apart: whether this worker is alone, or only listens: nobody who does not is to follow.
        """
        ends = {
            other: self._sealer.seal(
                *(phase, exchange, self.worker, other, self._reports[other]),
                ALONE if apart else 0,
                last=True,
            )
            for other in self._others
        }
        self._stopwatch.lap("sealing")
        for _ in range(_LAST_WORDS):
            for other, end in ends.items():
                self._socket.send(end, self._addresses[other])
        self._stopwatch.lap("sending")

    def _of_others(self, packets: int) -> np.ndarray:
        """Returns which packets others serve sooner or later, bool `[num_workers, packets]`."""
        of_others = np.ones((self.num_workers, packets), bool)
        of_others[self.worker] = self._assignment == "random"
        return of_others

    def _digest(self, layout: Layout) -> int:
        """Returns a digest of all that the workers have to agree on, below 2^32."""
        about = layout.digest, self._seed, self._assignment, self.num_workers, self.payload_bytes
        return zlib.crc32(repr(about).encode())

    def _shift(self, exchange: int) -> int:
        """Draws which worker serves which block, the same on every worker."""
        if self._assignment == "fixed":
            return 0
        drawn = hashlib.blake2b(b"shift %d %d" % (self._seed, exchange), digest_size=8).digest()
        return int.from_bytes(drawn) % self.num_workers

    def _receive(self) -> None:
        try:
            self._take_all()
        except Exception as error:  # It is raised by the next exchange.
            self._failure = error

    def _take_all(self) -> None:
        while not self._closed.is_set():
            for datagrams, seconds in self._socket.receive():
                self._inbox.take(datagrams, seconds)
            self._opening = time.thread_time()
            # A thread that runs for every datagram costs more than what is in them.
            if self._socket.drained and (pause := self._pause()) > _SHORTEST_PAUSE:
                time.sleep(pause)

    def _pause(self) -> float:
        """Returns for how long to let datagrams gather: while many are still to come, and fit."""
        # Each of the others sends to all of its others in turn, about as fast as this worker.
        left = self._inbox.still_to_come() * self.payload_bytes * len(self._others)
        gathered = min(left / 2, self._socket.receive_buffer / _BUFFER_SHARE, _GATHERED_BYTES)
        return min(self._longest_pause, 8 * gathered / self._pacer.bits_per_second)
