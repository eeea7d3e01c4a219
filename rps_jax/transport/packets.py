"""The format of a datagram: who sends which part of what to whom, and a tag that proves it.

    offset  bytes
         0      2  "RP"
         2      1  version, 1
         3      1  phase: 0 reduce-scatter, 1 all-gather; + 2 in the last datagram of a phase, which
                   has no payload
         4      8  run
        12      4  exchange
        16      2  source: the worker that sends it
        18      2  destination: the worker that it is for
        20      4  place: which packet of the block
        24      2  length of the payload in bytes
        26      n  payload
      26+n     16  tag: keyed BLAKE2b (RFC 7693) of all before; absent without authentication

Integers are big-endian. The payload is readable by anyone; without the key nobody can make a
datagram that is accepted, nor use one again: each is for one place of one phase of one exchange of
one run, between two workers.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_HEADER = struct.Struct("!2sBBQIHHIH")
_MAGIC, _VERSION = b"RP", 1
_END = 2
_TAG_BYTES = 16
_PLACE = slice(20, 24)


class Header(NamedTuple):
    """What a datagram says of itself.

    Attributes:
        phase: 0 the reduce-scatter, 1 the all-gather.
        last: whether it ends the phase, and has no payload.
        exchange: number of the exchange.
        source: the worker that sent it.
        destination: the worker that it is for.
        place: which packet of the block.
    """

    phase: int
    last: bool
    exchange: int
    source: int
    destination: int
    place: int


class Refused(Exception):
    """A datagram that is not applied.

    Attributes:
        kind: why: "foreign", "truncated" or "forged".
    """

    def __init__(self, kind: str) -> None:
        """Takes the kind."""
        super().__init__(kind)
        self.kind = kind


class Sealer:
    """Makes the datagrams of a run and reads them."""

    def __init__(self, run: int, key: bytes | None) -> None:
        """Takes what all workers of the run share.

        Args:
            run: number of the run, below 2^64.
            key: 16 to 64 secret bytes; None for no authentication.
        """
        self._run, self._key = run, key
        self.overhead = _HEADER.size + (_TAG_BYTES if key else 0)

    def seal(
        self,
        phase: int,
        exchange: int,
        source: int,
        destination: int,
        rows: np.ndarray,
        first: int = 0,
    ) -> np.ndarray:
        """Returns datagrams of a block.

        Args:
            phase: 0 the reduce-scatter, 1 the all-gather.
            exchange: number of the exchange.
            source: this worker.
            destination: the worker that they are for.
            rows: uint8 `[packets, length]`, the payloads.
            first: which packet of the block the first of them is.

        Returns:
            uint8 `[packets, length + overhead]`.
        """
        packets, length = rows.shape
        sealed = np.empty((packets, length + self.overhead), np.uint8)
        header = self._header(phase, exchange, source, destination, 0, length)
        sealed[:, : _HEADER.size] = np.frombuffer(header, np.uint8)
        sealed[:, _PLACE] = np.arange(first, first + packets, dtype=">u4")[:, None].view(np.uint8)
        body = _HEADER.size + length
        sealed[:, _HEADER.size : body] = rows
        if self._key:
            for row in sealed:
                row[body:] = np.frombuffer(self._tag(row[:body].data), np.uint8)
        return sealed

    def seal_end(self, phase: int, exchange: int, source: int, destination: int) -> bytes:
        """Returns the datagram that ends a phase."""
        header = self._header(phase + _END, exchange, source, destination, 0, 0)
        return header + self._tag(header)

    def open(self, datagram: memoryview) -> tuple[Header, memoryview]:
        """Returns what a datagram says of itself, and its payload.

        Raises:
            Refused: it is not of this run, or not whole, or was not made with the key.
        """
        if len(datagram) < self.overhead:
            raise Refused("truncated")
        magic, version, phase, run, exchange, source, destination, place, length = (
            _HEADER.unpack_from(datagram)
        )
        if magic != _MAGIC or version != _VERSION or run != self._run or phase > 1 + _END:
            raise Refused("foreign")
        if len(datagram) != length + self.overhead:
            raise Refused("truncated")
        body = _HEADER.size + length
        if not hmac.compare_digest(self._tag(datagram[:body]), bytes(datagram[body:])):
            raise Refused("forged")
        header = Header(phase % _END, phase >= _END, exchange, source, destination, place)
        return header, datagram[_HEADER.size : body]

    def _header(
        self, phase: int, exchange: int, source: int, destination: int, place: int, length: int
    ) -> bytes:
        return _HEADER.pack(
            _MAGIC, _VERSION, phase, self._run, exchange, source, destination, place, length
        )

    def _tag(self, content: bytes | memoryview) -> bytes:
        if not self._key:
            return b""
        return hashlib.blake2b(content, digest_size=_TAG_BYTES, key=self._key).digest()


def check_key(key: bytes | None) -> None:
    """Raises `ValueError` for a key that BLAKE2b does not take, or that can be guessed."""
    if key is not None and not (isinstance(key, bytes) and 16 <= len(key) <= 64):
        size = f"{len(key)} bytes" if isinstance(key, Sequence) else repr(key)
        raise ValueError(f"key has {size}: expected 16 to 64 bytes, or None")
