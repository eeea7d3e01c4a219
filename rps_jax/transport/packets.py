"""The format of a datagram: who sends which part of what to whom, and a tag that proves it.

    offset  bytes
         0      2  "RP"
         2      1  version, 3
         3      1  phase: 0 reduce-scatter, 1 all-gather; + 2 in the last datagram of a phase, whose
                   payload is a report
         4      8  run
        12      4  exchange
        16      2  source: the worker that sends it
        18      2  destination: the worker that it is for; 65535 for everyone, in the all-gather
        20      4  place: which packet of the block; in the last datagram of a phase, 1 where the
                   source is alone or only listens, 2 where it is there and has yet to begin, and
                   else 0
        24      4  digest of what is exchanged: structure, shapes and dtypes, number of workers, how
                   blocks get their servers
        28      2  length of the payload in bytes
        30      n  payload
      30+n     16  tag: HMAC-SHA-256 (RFC 2104) of all before, the first half; absent without
                   authentication

A report says what the source received of the destination's in the last phase that it has closed:

         0      4  exchange
         4      1  phase
         5      4  packets
         9      8  microseconds from the first to the last

Integers are big-endian. The payload is readable by anyone; without the key nobody can make a
datagram that is accepted, nor use one again: each is for one place of one phase of one exchange of
one run, from one worker.
"""

import hashlib
import hmac
import socket
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

EVERYONE = 0xFFFF
"""The destination of the averages, which are the same for all workers: they are sealed once."""
_HEADER = np.dtype(
    [
        ("start", ">u4"),  # "RP", version, phase
        ("run", ">u8"),
        ("exchange", ">u4"),
        ("source", ">u2"),
        ("destination", ">u2"),
        ("place", ">u4"),
        ("digest", ">u4"),
        ("length", ">u2"),
    ]
)
_REPORT = struct.Struct("!IBIQ")
_START = int.from_bytes(b"RP\x03\x00")
_PHASES = np.uint32(3)
"""The bits of `start` in which datagrams of a run differ."""
_END = 2
_BEGINNING_BYTES = 12
"""Of a header, up to the run."""
_TAG_BYTES = 16
IP_AND_UDP_BYTES: dict[int, int] = {socket.AF_INET: 20 + 8, socket.AF_INET6: 40 + 8}
"""Bytes of their headers, by family of addresses."""
LEAST_MTU, MOST_MTU = 576, 65_000
"""What every host of IPv4 has to take; and a little less than the largest datagram."""
MTU = 1280
"""What every network of IPv6 has to carry, and VPNs and overlays inside of other networks do."""


class Opened(NamedTuple):
    """Datagrams of one size that say the same of themselves, but for their sources and places.

    Attributes:
        phase: 0 the reduce-scatter, 1 the all-gather.
        last: whether they end the phase.
        exchange: number of the exchange.
        destination: the worker that they are for, or `EVERYONE`.
        digest: of what is exchanged.
        sources: `[count]`, the workers that sent them.
        places: `[count]`, which packets of the block they are.
        payloads: uint8 `[count, length]`.
        seconds: `[count]`, when they came.
    """

    phase: int
    last: bool
    exchange: int
    destination: int
    digest: int
    sources: np.ndarray
    places: np.ndarray
    payloads: np.ndarray
    seconds: np.ndarray

    def only(self, chosen: np.ndarray) -> "Opened":
        """Returns some of them, those of a mask, bool `[count]`."""
        each = (self.sources, self.places, self.payloads, self.seconds)
        return Opened(*self[:5], *(values[chosen] for values in each))


class Report(NamedTuple):
    """What one worker received of another's block in a phase.

    Attributes:
        exchange: number of the exchange.
        phase: 0 the reduce-scatter, 1 the all-gather.
        packets: how many.
        seconds: from the first to the last.
    """

    exchange: int
    phase: int
    packets: int
    seconds: float

    def to_row(self) -> np.ndarray:
        """Returns it as a payload, uint8 `[1, 17]`."""
        microseconds = round(1e6 * max(self.seconds, 0.0))
        packed = _REPORT.pack(self.exchange, self.phase, self.packets, microseconds)
        return np.frombuffer(packed, np.uint8)[None]

    @classmethod
    def of_row(cls, row: np.ndarray) -> "Report | None":
        """Returns the report of a payload, None if it is none."""
        if row.size != _REPORT.size:
            return None
        exchange, phase, packets, microseconds = _REPORT.unpack(row.tobytes())
        return cls(exchange, phase, packets, 1e-6 * microseconds)


class Sealer:
    """Makes the datagrams of a run and reads them."""

    def __init__(self, run: int, key: bytes | None) -> None:
        """Takes what all workers of the run share.

        Args:
            run: number of the run, below 2^64.
            key: 16 to 64 secret bytes; None for no authentication.
        """
        self._run = run
        starts = range(_START, _START + int(_PHASES) + 1)
        self._beginnings = {struct.pack("!IQ", start, run) for start in starts}
        self._keyed = _hmac(key) if key else None
        self._tag_bytes = _TAG_BYTES if key else 0
        self.overhead = _HEADER.itemsize + self._tag_bytes

    def seal(
        self,
        phase: int,
        exchange: int,
        source: int,
        destination: int,
        rows: np.ndarray,
        first: int = 0,
        *,
        digest: int = 0,
        last: bool = False,
    ) -> np.ndarray:
        """Returns datagrams of a block.

        Args:
            phase: 0 the reduce-scatter, 1 the all-gather.
            exchange: number of the exchange.
            source: this worker.
            destination: the worker that they are for, or `EVERYONE`.
            rows: uint8 `[packets, length]`, the payloads.
            first: which packet of the block the first of them is.
            digest: of what is exchanged.
            last: whether they end the phase.

        Returns:
            uint8 `[packets, length + overhead]`.
        """
        packets, length = rows.shape
        sealed = np.empty((packets, length + self.overhead), np.uint8)
        start = _START + phase + _END * last
        headers = _headers(sealed)
        headers[...] = (start, self._run, exchange, source, destination, 0, digest, length)
        headers["place"] = np.arange(first, first + packets)
        body = _HEADER.itemsize + length
        sealed[:, _HEADER.itemsize : body] = rows
        if self._keyed:
            tags = np.frombuffer(b"".join(self._tags(sealed)), np.uint8)
            sealed[:, body:] = tags.reshape(packets, _TAG_BYTES)
        return sealed

    def is_of_run(self, datagram: memoryview) -> bool:
        """Returns whether a datagram begins as those of this run do."""
        return bytes(datagram[:_BEGINNING_BYTES]) in self._beginnings

    def open(
        self, datagrams: np.ndarray, seconds: np.ndarray | float = 0.0
    ) -> tuple[list[Opened], dict[str, int]]:
        """Returns what datagrams say of themselves, and their payloads.

        Args:
            datagrams: uint8 `[count, size]`, contiguous, in the order in which they came; of no
                size for those that are known to be foreign.
            seconds: when each came, `[count]`, on any clock.

        Returns:
            Those that are of this run, whole, and made with the key; and how many are not, by the
            first that they lack: "foreign", "truncated" or "forged".
        """
        refused: dict[str, int] = {}
        count, size = datagrams.shape
        came = np.broadcast_to(seconds, count)

        def refuse(kind: str, wrong: np.ndarray) -> None:
            nonlocal datagrams, came
            if count := int(np.count_nonzero(wrong)):
                refused[kind] = count
                datagrams, came = datagrams[~wrong], came[~wrong]

        if size < self.overhead:
            return [], {"truncated" if size else "foreign": count}
        headers = _headers(datagrams)
        refuse("foreign", (headers["start"] & ~_PHASES != _START) | (headers["run"] != self._run))
        refuse("truncated", _headers(datagrams)["length"] != size - self.overhead)
        refuse("forged", self._forged(datagrams))
        return list(_alike(datagrams, came, size - self._tag_bytes)), refused

    def _forged(self, datagrams: np.ndarray) -> np.ndarray:
        count, size = datagrams.shape
        said = datagrams[:, size - self._tag_bytes :].tobytes()
        expected = list(self._tags(datagrams)) if self._keyed else []
        if hmac.compare_digest(b"".join(expected), said):
            return np.zeros(count, bool)
        tags = [said[start : start + _TAG_BYTES] for start in range(0, len(said), _TAG_BYTES)]
        return ~np.array([hmac.compare_digest(*pair) for pair in zip(tags, expected, strict=True)])

    def _tags(self, datagrams: np.ndarray) -> Iterator[bytes]:
        """Yields the tags that datagrams should have, or are to get."""
        assert self._keyed
        inner, outer = self._keyed
        content = datagrams.reshape(-1).data
        size = datagrams.shape[1]
        for start in range(0, len(content), size):
            message = inner()
            message.update(content[start : start + size - _TAG_BYTES])
            tag = outer()
            tag.update(message.digest())
            yield tag.digest()[:_TAG_BYTES]


def payload_of(mtu: int) -> int:
    """Returns how many bytes of a block go into one packet of a network, with all headers.

    Args:
        mtu: bytes of the network's largest packet.
    """
    return mtu - max(IP_AND_UDP_BYTES.values()) - _HEADER.itemsize - _TAG_BYTES


def check_key(key: bytes | None) -> None:
    """Raises `ValueError` for a key that is too long for the tags, or that can be guessed."""
    if key is not None and not isinstance(key, bytes):
        raise ValueError(f"key is of type {type(key).__name__}: expected 16 to 64 bytes, or None")
    if key is not None and not 16 <= len(key) <= 64:
        raise ValueError(f"key has {len(key)} bytes: expected 16 to 64 bytes, or None")


def _hmac(key: bytes) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Returns what makes the inner and the outer hash of an HMAC, which have taken in the key.

    With `hmac.new(key, digestmod="sha256").copy` a tag takes a quarter longer.
    """
    block = np.frombuffer(key.ljust(64, b"\0"), np.uint8)
    inner, outer = (hashlib.sha256((block ^ pad).tobytes()) for pad in (0x36, 0x5C))
    return inner.copy, outer.copy


def _headers(datagrams: np.ndarray) -> np.ndarray:
    return datagrams[:, : _HEADER.itemsize].view(_HEADER)[:, 0]


def _alike(datagrams: np.ndarray, seconds: np.ndarray, end: int) -> Iterator[Opened]:
    """Groups datagrams in a row that differ in nothing but their sources, places and payloads."""
    if not len(datagrams):
        return
    headers = _headers(datagrams)
    sources, places = headers["source"].astype(np.int64), headers["place"].astype(np.int64)
    change = np.zeros(len(datagrams) - 1, bool)
    for field in ("start", "exchange", "destination", "digest"):
        values = headers[field]
        change |= values[1:] != values[:-1]
    for first, until in pairwise([0, *(np.flatnonzero(change) + 1).tolist(), len(datagrams)]):
        start, _, exchange, _, destination, _, digest, _ = headers[first].tolist()
        part = slice(first, until)
        yield Opened(
            start % _END,
            bool(start & _END),
            exchange,
            destination,
            digest,
            sources[part],
            places[part],
            datagrams[part, _HEADER.itemsize : end],
            seconds[part],
        )
