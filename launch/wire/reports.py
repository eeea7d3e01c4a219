"""What workers report to the coordinator: messages over TCP, for which no exchange ever waits.

A connection begins with 16 random bytes of the coordinator. A message is

    4 bytes   length of the header
    8 bytes   length of the payload
              header, a JSON object with "kind" and "worker"
              payload
    32 bytes  tag: keyed BLAKE2b of the random bytes, the number of the message on this connection,
              and all before; zeros without authentication

Integers are big-endian. The first message of each direction is a greeting; then the coordinator
answers each message when it has taken it, and until then the worker keeps it.
"""

import contextlib
import hashlib
import hmac
import json
import queue
import secrets
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

_LENGTHS = struct.Struct("!IQ")
_TAG_BYTES, _CHALLENGE_BYTES = 32, 16
_LONGEST_HEADER = 1 << 20
_MOST_WAITING_BYTES = 256 << 20
_MOST_WAITING_PAYLOADS = 4
_RETRY_SECONDS = 1.0
_GREETING_SECONDS = 10.0
_GONE_SECONDS, _SLOW_SECONDS = 10.0, 300.0
"""How long a coordinator may take nothing in the end: one that is not there, and one that is."""
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""When TCP asks whether the other host is still there; where the system has such options."""

Message = tuple[dict[str, Any], bytes]


class _Channel:
    """One direction of a connection: messages with tags in sequence."""

    def __init__(self, key: bytes | None, challenge: bytes) -> None:
        self._key, self._challenge, self._number = key, challenge, 0

    def seal(self, header: dict[str, Any], payload: bytes) -> bytes:
        encoded = json.dumps(header).encode()
        content = _LENGTHS.pack(len(encoded), len(payload)) + encoded + payload
        return content + self._tag(content)

    def read(self, stream: Any, longest: int) -> Message | None:
        """Returns the next message; None at the end, or where something is wrong with it."""
        lengths = stream.read(_LENGTHS.size)
        if len(lengths) < _LENGTHS.size:
            return None
        of_header, of_payload = _LENGTHS.unpack(lengths)
        if of_header > _LONGEST_HEADER or of_payload > longest:
            return None
        content = stream.read(of_header + of_payload)
        tag = stream.read(_TAG_BYTES)
        if len(tag) < _TAG_BYTES or not hmac.compare_digest(tag, self._tag(lengths + content)):
            return None
        with contextlib.suppress(ValueError):
            header = json.loads(content[:of_header])
            if isinstance(header, dict):
                return header, content[of_header:]
        return None

    def _tag(self, content: bytes) -> bytes:
        if not self._key:
            return bytes(_TAG_BYTES)
        number, self._number = self._number, self._number + 1
        digest = hashlib.blake2b(self._challenge, digest_size=_TAG_BYTES, key=self._key)
        digest.update(number.to_bytes(8))
        digest.update(content)
        return digest.digest()


def _keep_alive(connection: socket.socket) -> None:
    """Lets a connection be silent for as long as the other host is there."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _has_ended(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


class Reporter:
    """A worker's end: what it is told goes to the coordinator when there is one."""

    def __init__(
        self, coordinator: tuple[str, int], key: bytes | None, worker: int, greeting: dict[str, Any]
    ) -> None:
        """Has reported nothing yet.

        Args:
            coordinator: Host and port.
            key: That of the run; None without authentication.
            worker: This worker's index.
            greeting: Sent first on every connection.
        """
        self._coordinator, self._key, self._worker = coordinator, key, worker
        self._greeting = greeting
        self._waiting: deque[Message] = deque()
        self._most_bytes = _MOST_WAITING_BYTES
        self._newest: Message | None = None
        self._taken, self._connected = 0, False
        self._changed = threading.Condition()
        self._closing = False
        self._answered = threading.Event()
        self.refusal: str | None = None
        """Why the coordinator does not want this worker; None while it has not said so."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __str__(self) -> str:
        """Names the coordinator, for people."""
        host, port = self._coordinator
        return f"the coordinator at {host}:{port}"

    def start(self, seconds: float) -> bool:
        """Begins to connect; returns whether the coordinator has answered by then."""
        self._thread.start()
        return self._answered.wait(seconds)

    def tell(self, kind: str, header: dict[str, Any], payload: bytes = b"") -> None:
        """Has a message sent, some time; drops the oldest where too many wait."""
        message = {"kind": kind, "worker": self._worker, **header}, payload
        with self._changed:
            self._waiting.append(message)
            if kind == "metrics":
                self._newest = message
            self._most_bytes = max(self._most_bytes, _MOST_WAITING_PAYLOADS * len(payload))
            while sum(len(payload) for _, payload in self._waiting) > self._most_bytes:
                self._waiting.popleft()
            self._changed.notify()

    def close(self, *, patient: bool) -> int:
        """Sends what waits, for as long as it is taken; returns how many messages are left.

        Args:
            patient: Whether to wait for a coordinator that is there and slow.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        taken, since = self._taken, time.monotonic()
        while self._thread.is_alive():
            self._thread.join(_RETRY_SECONDS)
            if self._taken != taken:
                taken, since = self._taken, time.monotonic()
            longest = _SLOW_SECONDS if patient and self._connected else _GONE_SECONDS
            if time.monotonic() - since > longest:
                break
        return len(self._waiting)

    def _run(self) -> None:
        while not self._is_done():
            with contextlib.suppress(OSError):
                self._talk()
            self._connected = False
            if self.refusal is not None:
                return
            time.sleep(_RETRY_SECONDS)

    def _is_done(self) -> bool:
        with self._changed:
            return self._closing and not self._waiting

    def _talk(self) -> None:
        """Greets, and reports until the connection breaks or there is nothing more to come."""
        address = self._coordinator
        with socket.create_connection(address, timeout=_GREETING_SECONDS) as connection:
            if connection.getsockname() == connection.getpeername():
                return  # A free port of the same host: TCP has connected it to itself.
            stream = connection.makefile("rb")
            challenge = stream.read(_CHALLENGE_BYTES)
            to_it, from_it = (_Channel(self._key, side + challenge) for side in (b"w", b"c"))
            greeting = {"kind": "greeting", "worker": self._worker, **self._greeting}
            connection.sendall(to_it.seal(greeting, b""))
            answer = from_it.read(stream, 0)
            if answer is None:
                return
            self.refusal = answer[0].get("refusal")
            self._answered.set()
            if self.refusal is not None:
                return
            _keep_alive(connection)
            self._connected = True
            self._say_again()
            while message := self._next(connection):
                connection.sendall(to_it.seal(*message))
                if from_it.read(stream, 0) is None:
                    return
                with self._changed:
                    self._taken += 1
                    if self._waiting and self._waiting[0] is message:
                        self._waiting.popleft()

    def _say_again(self) -> None:
        """Has the newest metrics told to a coordinator that may have been started since."""
        with self._changed:
            newest = self._newest
            if newest is not None and not any(message is newest for message in self._waiting):
                self._waiting.appendleft(newest)

    def _next(self, connection: socket.socket) -> Message | None:
        """Waits for a message, which stays the first until it is taken; None at the end.

        The end is also that of the connection: a coordinator that has nothing to answer is silent.
        """
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait(_RETRY_SECONDS)
                if _has_ended(connection):
                    return None
            return self._waiting[0] if self._waiting else None


class Event(NamedTuple):
    """What the coordinator learns.

    Attributes:
        kind: "greeting", "gone", or what the worker has told.
        worker: Of whom.
        header: The rest of the header.
        payload: Bytes.
    """

    kind: str
    worker: int
    header: dict[str, Any]
    payload: bytes


class Reception:
    """The coordinator's end: a port, and the events that come from there in order.

    Attributes:
        port: Of this host.
        events: Of all connections.
    """

    def __init__(
        self,
        port: int,
        key: bytes | None,
        num_workers: int,
        longest: int,
        check: Callable[["Event"], str | None],
    ) -> None:
        """Opens the port.

        Args:
            port: Of this host.
            key: That of the run; None without authentication.
            num_workers: How many workers there are.
            longest: Most bytes of a payload.
            check: Given a greeting; returns why the worker cannot take part, or None.

        Raises:
            OSError: The port is taken.
        """
        # Bounded: where they are not taken, the workers' messages wait where they are.
        self.events: queue.Queue[Event] = queue.Queue(8 * num_workers)
        self._key, self._num_workers, self._longest, self._check = key, num_workers, longest, check
        self.port, self._warned = port, False
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._places = threading.BoundedSemaphore(4 * num_workers + 16)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        self._start(self._listen)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self._places.acquire(blocking=False):
                self._start(self._serve, connection)
            else:
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        worker = None
        try:
            self._connections.add(connection)
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_GREETING_SECONDS)
                challenge = secrets.token_bytes(_CHALLENGE_BYTES)
                connection.sendall(challenge)
                stream = connection.makefile("rb")
                from_it, to_it = (_Channel(self._key, side + challenge) for side in (b"w", b"c"))
                greeting = self._event(from_it.read(stream, 0))
                if greeting is None or greeting.kind != "greeting":
                    self._warn(connection)
                    return
                refusal = self._check(greeting)
                connection.sendall(to_it.seal({"refusal": refusal}, b""))
                if refusal is not None:
                    return
                worker = greeting.worker
                self.events.put(greeting)
                _keep_alive(connection)
                while event := self._event(from_it.read(stream, self._longest)):
                    if event.worker != worker or event.kind in ("greeting", "gone"):
                        return
                    self.events.put(event)
                    connection.sendall(to_it.seal({}, b""))
        finally:
            self._connections.discard(connection)
            self._places.release()
            if worker is not None and not self._closed:
                self.events.put(Event("gone", worker, {}, b""))

    def _warn(self, connection: socket.socket) -> None:
        """Says, once, that someone has come who is not understood."""
        if not self._warned:
            self._warned = True
            host = connection.getpeername()[0]
            print(f"a caller at {host} has another key, or is no worker of this run", flush=True)

    def _event(self, message: Message | None) -> Event | None:
        if message is None:
            return None
        header, payload = message
        kind, worker = header.pop("kind", None), header.pop("worker", None)
        known = isinstance(kind, str) and type(worker) is int and 0 <= worker < self._num_workers
        return Event(kind, worker, header, payload) if known else None

    def close(self) -> None:
        """Gives the port back, and ends all connections."""
        self._closed = True
        # A thread that waits there would hold it.
        for each in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        # What they hold on to is the caller's: its arrays must not be left to a thread that ends
        # with the interpreter.
        for thread in self._threads:
            with contextlib.suppress(queue.Empty):
                while True:
                    self.events.get_nowait()
            thread.join(_RETRY_SECONDS)
