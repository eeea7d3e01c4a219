"""Messages between a worker and the coordinator, over TCP.

A connection begins with 16 random bytes of the coordinator, and then 16 of the worker and its index
in 4 bytes. A message is

    4 bytes   length of the header
    8 bytes   length of the payload
              header, a JSON object
              payload
    32 bytes  tag: keyed BLAKE2b of the direction, all that the connection began with, the number of
              the message in this direction, and all before; zeros without authentication

Integers are big-endian.
"""

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import struct
import time
from typing import Any

from launch.json_objects import DamagedError, parse_object

_LENGTHS, _INDEX = struct.Struct("!IQ"), struct.Struct("!I")
_TAG_BYTES, _RANDOM_BYTES = 32, 16
_LONGEST_HEADER, _LONGEST_GREETING = 1 << 20, 1 << 16
_TO_COORDINATOR, _TO_WORKER = b"w", b"c"
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""When TCP asks whether the other host is still there; where the system has such options."""

Message = tuple[dict[str, Any], bytes]


class Connection:
    """One end of a connection.

    All calls may raise `OSError`: the connection has ended, or the greetings have taken too long.
    """

    def __init__(self, opened: socket.socket, key: bytes | None, seconds: float) -> None:
        """Has said nothing yet.

        Args:
            opened: Connected.
            key: That of the run; None without authentication.
            seconds: How long all may take until `keep`.
        """
        self._opened, self._key = opened, key
        self._longest_header = _LONGEST_GREETING
        self._until: float | None = time.monotonic() + seconds
        self._sent = self._received = 0

    def call(self, worker: int) -> None:
        """Begins the connection, at the end of a worker."""
        challenge = self._read(_RANDOM_BYTES)
        own = secrets.token_bytes(_RANDOM_BYTES) + _INDEX.pack(worker)
        self._opened.sendall(own)
        self._begun, self._to, self._from = challenge + own, _TO_COORDINATOR, _TO_WORKER

    def answer(self) -> int:
        """Begins the connection, at the end of the coordinator; returns the index of the caller."""
        challenge = secrets.token_bytes(_RANDOM_BYTES)
        self._opened.sendall(challenge)
        said = self._read(_RANDOM_BYTES + _INDEX.size)
        self._begun, self._to, self._from = challenge + said, _TO_WORKER, _TO_COORDINATOR
        worker: int = _INDEX.unpack_from(said, _RANDOM_BYTES)[0]
        return worker

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Sends a message."""
        encoded = json.dumps(header).encode()
        content = _LENGTHS.pack(len(encoded), len(payload)) + encoded + payload
        self._opened.sendall(content + self._tag(self._to, self._sent, content))
        self._sent += 1

    def receive(self, longest: int = 0) -> Message | None:
        """Returns the next message; None where something is wrong with it.

        Args:
            longest: Most bytes of its payload.
        """
        lengths = self._read(_LENGTHS.size)
        of_header, of_payload = _LENGTHS.unpack(lengths)
        if of_header > self._longest_header or of_payload > longest:
            return None
        encoded, payload, tag = map(self._read, (of_header, of_payload, _TAG_BYTES))
        expected = self._tag(self._from, self._received, lengths, encoded, payload)
        self._received += 1
        if not hmac.compare_digest(tag, expected):
            return None
        with contextlib.suppress(DamagedError):
            return parse_object(encoded, lambda header: True), payload
        return None

    def keep(self) -> None:
        """After the greetings, lets the other be silent for as long as its host is there."""
        self._until, self._longest_header = None, _LONGEST_HEADER
        self._opened.settimeout(None)
        self._opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if option := getattr(socket, name, None):
                self._opened.setsockopt(socket.IPPROTO_TCP, option, value)

    def has_ended(self) -> bool:
        """Returns whether the other has closed it, where nothing is to come from there."""
        try:
            return not self._opened.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False

    def _read(self, count: int) -> bytes:
        content = bytearray(count)
        rest = memoryview(content)
        while rest:
            if self._until is not None:
                # For all that is read: who sends a byte now and then is not waited for.
                if (left := self._until - time.monotonic()) <= 0:
                    raise TimeoutError("the greetings have taken too long")
                self._opened.settimeout(left)
            came = self._opened.recv_into(rest)
            if not came:
                raise ConnectionError("the other has closed the connection")
            rest = rest[came:]
        return bytes(content)

    def _tag(self, direction: bytes, number: int, *content: bytes) -> bytes:
        if not self._key:
            return bytes(_TAG_BYTES)
        digest = hashlib.blake2b(direction, digest_size=_TAG_BYTES, key=self._key)
        for part in (self._begun, number.to_bytes(8), *content):
            digest.update(part)
        return digest.digest()
