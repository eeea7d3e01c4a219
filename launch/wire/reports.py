"""What workers report to the coordinator, for which no exchange ever waits.

The first message of each direction is a greeting; then the coordinator answers each message, which
has a "kind", when it has taken it, and until then the worker keeps it.
"""

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from launch.wire.events import Event, Events
from launch.wire.messages import Connection, Message

_MOST_WAITING_BYTES = 256 << 20
_MOST_WAITING_PAYLOADS = 4
_RETRY_SECONDS = 1.0
_GREETING_SECONDS = 10.0
_GONE_SECONDS, _SLOW_SECONDS = 10.0, 300.0
"""How long a coordinator may take nothing in the end: one that is not there, and one that is."""


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
        message = {"kind": kind, **header}, payload
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
        with socket.create_connection(address, timeout=_GREETING_SECONDS) as opened:
            if opened.getsockname() == opened.getpeername():
                return  # A free port of the same host: TCP has connected it to itself.
            connection = Connection(opened, self._key, _GREETING_SECONDS)
            connection.call(self._worker)
            connection.send({"kind": "greeting", **self._greeting})
            answer = connection.receive()
            if answer is None:
                return
            self.refusal = answer[0].get("refusal")
            self._answered.set()
            if self.refusal is not None:
                return
            connection.keep()
            self._connected = True
            self._say_again()
            while message := self._next(connection):
                connection.send(*message)
                if connection.receive() is None:
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

    def _next(self, connection: Connection) -> Message | None:
        """Waits for a message, which stays the first until it is taken; None at the end.

        The end is also that of the connection: a coordinator that has nothing to answer is silent.
        """
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait(_RETRY_SECONDS)
                if connection.has_ended():
                    return None
            return self._waiting[0] if self._waiting else None


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
        check: Callable[[Event], str | None],
        host: str = "",
    ) -> None:
        """Opens the port.

        Args:
            port: Of this host.
            key: That of the run; None without authentication.
            num_workers: How many workers there are.
            longest: Most bytes of a payload.
            check: Given a greeting; returns why the worker cannot take part, or None.
            host: Address of this host; empty for all that it has.

        Raises:
            OSError: The port is taken, or the address is none of this host.
        """
        self.events = Events(8 * num_workers, num_workers * longest)
        self._key, self._num_workers, self._longest, self._check = key, num_workers, longest, check
        self.port, self._warned = port, False
        # Those that are open, in the order in which they came, and whether they have the key.
        self._connections: dict[socket.socket, bool] = {}
        self._most_connections = 4 * num_workers + 16
        self._changing = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        dual = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual or ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, dualstack_ipv6=dual)
        self._start(self._listen)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                opened, _ = self._listener.accept()
            except OSError:  # Too many files are open, or the port is closed.
                self._closed.wait(_RETRY_SECONDS)
                continue
            try:
                self._admit(opened)
                self._start(self._serve, opened)
            except (OSError, RuntimeError):  # There is no room, or no thread.
                self._dismiss(opened)

    def _admit(self, opened: socket.socket) -> None:
        """Notes a connection, for which the oldest of those without the key gives way if need be.

        Raises:
            ConnectionError: All have the key.
        """
        with self._changing:
            if len(self._connections) >= self._most_connections:
                strangers = (each for each, has_key in self._connections.items() if not has_key)
                oldest = next(strangers, None)
                if oldest is None:
                    raise ConnectionError("too many connections")
                del self._connections[oldest]
                _end(oldest)
            self._connections[opened] = False

    def _dismiss(self, opened: socket.socket) -> None:
        with self._changing:
            self._connections.pop(opened, None)
            opened.close()

    def _serve(self, opened: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                self._hear(opened)
        finally:
            self._dismiss(opened)

    def _hear(self, opened: socket.socket) -> None:
        """Takes what a worker says, until the connection ends."""
        connection = Connection(opened, self._key, _GREETING_SECONDS)
        worker = connection.answer()
        greeting = _event(worker, connection.receive())
        if greeting is None or greeting.kind != "greeting" or worker >= self._num_workers:
            self._warn(opened)
            return
        with self._changing:
            if opened not in self._connections:
                return
            self._connections[opened] = True
        refusal = self._check(greeting)
        connection.send({"refusal": refusal})
        if refusal is not None:
            return
        self.events.put(greeting)
        try:
            connection.keep()
            while event := _event(worker, connection.receive(self._longest)):
                if event.kind in ("greeting", "gone"):
                    return
                self.events.put(event)
                connection.send({})
        finally:
            self.events.put(Event("gone", worker, {}, b""))

    def _warn(self, opened: socket.socket) -> None:
        """Says, once, that someone has come who is not understood."""
        if not self._warned:
            self._warned = True
            host = opened.getpeername()[0]
            print(f"a caller at {host} has another key, or is no worker of this run", flush=True)

    def close(self) -> None:
        """Gives the port back, and ends all connections."""
        self._closed.set()
        self.events.close()
        # A thread that waits there would hold it.
        _end(self._listener)
        with self._changing:
            for each in self._connections:
                _end(each)
        self._listener.close()
        # What they hold on to is the caller's: its arrays must not be left to a thread that ends
        # with the interpreter.
        for thread in self._threads:
            thread.join(_RETRY_SECONDS)


def _end(opened: socket.socket) -> None:
    """Ends a connection, or a port, for the thread that waits there too."""
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)


def _event(worker: int, message: Message | None) -> Event | None:
    if message is None:
        return None
    header, payload = message
    kind = header.pop("kind", None)
    return Event(kind, worker, header, payload) if isinstance(kind, str) else None
