"""What workers tell the coordinator over TCP: who is heard, and what is kept until it is taken."""

import contextlib
import errno
import itertools
import socket
import struct
import threading
import time

import numpy as np
import pytest

from launch.distributed.ports import free_port
from launch.wire import messages, reports
from launch.wire.events import Event, Events
from launch.wire.messages import Connection
from launch.wire.reports import Reception, Reporter

KEY = b"0123456789abcdef"


def received(reception, kind):
    """The next event of a kind."""
    while (event := reception.events.get(timeout=20)).kind != kind:
        pass
    return event


@pytest.fixture
def reception():
    opened = Reception(free_port(), KEY, 3, 1000, lambda greeted: greeted.header.get("no"))
    yield opened
    opened.close()


def reporter_to(reception, worker=1, key=KEY, **greeting):
    return Reporter(("localhost", reception.port), key, worker, greeting)


def test_what_a_worker_reports_arrives_in_order(reception):
    reporter = reporter_to(reception)
    reporter.tell("metrics", {"step": 1}, b"model")  # Before there is a connection.
    reporter.start(20)
    reporter.tell("done", {})
    assert reporter.close(patient=True) == 0
    events = [reception.events.get(timeout=20) for _ in range(4)]
    assert [event.kind for event in events] == ["greeting", "metrics", "done", "gone"]
    assert {event.worker for event in events} == {1}
    assert (events[1].header, events[1].payload) == ({"step": 1}, b"model")


def test_a_worker_that_is_refused_knows_why(reception):
    reporter = reporter_to(reception, no="another seed")
    reporter.start(20)
    assert reporter.refusal == "another seed"


@pytest.mark.parametrize(("worker", "key"), [(1, b"another key, 16+"), (1, None), (3, KEY)])
def test_a_stranger_is_not_heard(reception, worker, key):
    stranger = reporter_to(reception, worker, key)
    stranger.tell("metrics", {"step": 1})
    stranger.start(0.5)
    honest = reporter_to(reception)
    honest.tell("done", {})
    honest.start(20)
    assert [reception.events.get(timeout=20).kind for _ in range(2)] == ["greeting", "done"]
    assert honest.close(patient=True) == 0


def test_hostile_bytes_do_not_stop_the_coordinator(reception):
    rng = np.random.default_rng(0)
    for size in (0, 3, 12, 400, 5000):
        with socket.create_connection(("localhost", reception.port)) as hostile:
            hostile.sendall(rng.bytes(size))
    with socket.create_connection(("localhost", reception.port)) as hostile:
        hostile.sendall(bytes.fromhex("00000001 ffffffffffffffff"))
    reporter = reporter_to(reception)
    reporter.start(20)
    assert received(reception, "greeting").worker == 1
    assert reporter.close(patient=True) == 0


def all_of(caller):
    """What a caller is told until the coordinator ends the connection."""
    with caller.makefile("rb") as told:
        return told.read()


def beginning(worker, length_of_header):
    """What a worker that has no key might say, after 16 bytes of its own."""
    return bytes(16) + struct.pack("!IIQ", worker, length_of_header, 0)


def test_who_has_the_key_is_heard_among_many_who_have_not(monkeypatch, reception):
    monkeypatch.setattr(reports, "_RETRY_SECONDS", 0.05)
    with contextlib.ExitStack() as stack:
        for _ in range(reception._most_connections):
            caller = socket.create_connection(("localhost", reception.port))
            stack.enter_context(caller).sendall(beginning(0, 1000))
        reporter = reporter_to(reception)
        assert reporter.start(5)
        assert reporter.close(patient=True) == 0


def test_where_all_have_the_key_one_more_is_not_admitted(monkeypatch, reception):
    monkeypatch.setattr(reports, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(reception, "_most_connections", 1)
    for worker in range(2):
        reporter = reporter_to(reception, worker)
        assert reporter.start(20)
        with socket.create_connection(("localhost", reception.port), timeout=5) as caller:
            assert all_of(caller) == b""
        assert reporter.close(patient=True) == 0


def test_a_long_greeting_is_not_waited_for_and_said_once(reception, capsys):
    for _ in range(2):
        with socket.create_connection(("localhost", reception.port), timeout=5) as caller:
            caller.sendall(beginning(0, 1 << 20))
            assert len(all_of(caller)) == 16
    assert capsys.readouterr().out.count("has another key, or is no worker of this run") == 1


def test_a_caller_that_says_nothing_is_not_waited_for(monkeypatch, reception):
    monkeypatch.setattr(reports, "_GREETING_SECONDS", 0.1)
    with socket.create_connection(("localhost", reception.port), timeout=5) as caller:
        assert len(all_of(caller)) == 16


def test_a_slow_greeting_is_not_waited_for(monkeypatch, reception):
    monkeypatch.setattr(reports, "_GREETING_SECONDS", 0.3)

    def drip(caller):
        caller.sendall(beginning(0, 1000))
        for _ in range(50):
            time.sleep(0.05)
            caller.sendall(b"a")

    with (
        socket.create_connection(("localhost", reception.port)) as caller,
        pytest.raises(ConnectionError),
    ):
        drip(caller)


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (socket.socket, "accept", OSError(errno.EMFILE, "Too many open files")),
        (Reception, "_start", RuntimeError("can't start new thread")),
    ],
)
def test_a_coordinator_that_lacks_something_for_a_while_listens_again(
    monkeypatch, reception, owner, name, error
):
    monkeypatch.setattr(reports, "_RETRY_SECONDS", 0.05)
    real, errors = getattr(owner, name), [error]

    def fails_once(*arguments):
        if errors:
            raise errors.pop()
        return real(*arguments)

    monkeypatch.setattr(owner, name, fails_once)
    for worker in range(2):  # It waits for the first already.
        reporter = reporter_to(reception, worker)
        assert reporter.start(20)
        assert reporter.close(patient=True) == 0
    assert not errors


@pytest.mark.parametrize(("worker", "again"), [(1, b"b"), (2, b"a"), (1, b"a")])
def test_what_a_coordinator_said_once_is_said_once(monkeypatch, worker, again):
    """It is only said again to a worker with the same random bytes."""
    random = iter([b"c" * 16, b"a" * 16, again * 16])
    monkeypatch.setattr(messages.secrets, "token_bytes", lambda count: next(random))
    ends = [socket.socketpair() for _ in range(2)]
    with contextlib.ExitStack() as stack:
        for each in itertools.chain(*ends):
            stack.enter_context(each)
        (to_first, first), (replayed, second) = ends
        coordinator = Connection(to_first, KEY, 10)
        first.sendall(b"a" * 16 + struct.pack("!I", 1))
        assert coordinator.answer() == 1
        coordinator.send({"refusal": "another seed"})
        next(random)
        replayed.sendall(first.recv(1000))
        connection = Connection(second, KEY, 10)
        connection.call(worker)
        assert (connection.receive() is not None) == ((worker, again) == (1, b"a"))


def test_a_worker_that_was_greeted_may_say_much_and_be_silent_for_long(monkeypatch, reception):
    monkeypatch.setattr(reports, "_RETRY_SECONDS", 0.05)
    reporter = reporter_to(reception)
    much = {"exchanges": list(range(20_000))}
    reporter.tell("deliveries", much)
    assert reporter.start(20)
    events = [reception.events.get(timeout=20) for _ in range(2)]
    assert [(event.kind, event.header) for event in events] == [
        ("greeting", {}),
        ("deliveries", much),
    ]
    (opened,) = reception._connections
    assert opened.gettimeout() is None
    assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert reporter.close(patient=True) == 0


@pytest.mark.parametrize(
    ("challenge", "told", "heard"),
    [
        (b"c", ["first", "second"], [True, True]),
        (b"c", ["first", "first"], [True, False]),
        (b"c", ["second"], [False]),
        (b"c", ["answer"], [False]),
        (b"d", ["first"], [False]),
    ],
)
def test_a_message_is_heard_in_its_place_direction_and_connection(
    monkeypatch, challenge, told, heard
):
    """Whoever is between a worker and the coordinator may tell it again, or send it back."""
    random = iter([b"c" * 16, b"a" * 16, challenge * 16])
    monkeypatch.setattr(messages.secrets, "token_bytes", lambda count: next(random))
    begun, said = b"a" * 16 + struct.pack("!I", 1), {}
    ends = [socket.socketpair() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for each in itertools.chain(*ends):
            stack.enter_context(each)
        between, (coordinator, worker, another) = zip(
            *((end, Connection(other, KEY, 10)) for end, other in ends), strict=True
        )
        to_coordinator, to_worker, to_another = between
        to_coordinator.sendall(begun)
        coordinator.answer()
        to_worker.sendall(to_coordinator.recv(16))
        worker.call(1)
        assert to_worker.recv(20) == begun
        for name, teller, end in (
            ("first", worker, to_worker),
            ("second", worker, to_worker),
            ("answer", coordinator, to_coordinator),
        ):
            teller.send({"kind": name})
            said[name] = end.recv(1000)
        to_another.sendall(begun + b"".join(said[name] for name in told))
        another.answer()
        assert [another.receive() is not None for _ in told] == heard


@pytest.mark.parametrize("header", [b"{", b"\xff", b"[]", b"5", b"[" * 60_000])
def test_what_is_no_message_is_none(header):
    """Without a key, it may come from anyone."""
    caller, opened = socket.socketpair()
    with caller, opened:
        caller.sendall(beginning(1, len(header)) + header + bytes(32))
        connection = Connection(opened, None, 10)
        assert connection.answer() == 1
        assert connection.receive() is None


def test_a_port_of_one_address_is_open_there_alone():
    reception = Reception(free_port(), KEY, 1, 1000, lambda greeted: None, "127.0.0.1")
    with contextlib.closing(reception):
        socket.create_connection(("127.0.0.1", reception.port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", reception.port), timeout=5)


def test_what_waits_for_a_coordinator_is_bounded_in_bytes():
    model, small = (Event("metrics", 0, {}, bytes(size)) for size in (100, 1))
    events = Events(most=3, most_bytes=101)
    taken = []

    def put(*some):
        for event in some:
            events.put(event)
            taken.append(event)

    put(small, model)
    waiting = threading.Thread(target=put, args=(model, small), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert len(taken) == 2
    assert [events.get(1).payload for _ in range(2)] == [small.payload, model.payload]
    waiting.join(20)
    assert len(taken) == 4
    events.close()
    with pytest.raises(ConnectionError):
        put(small)


def test_whoever_waits_for_room_is_told_when_nothing_is_taken_any_more():
    event, refused = Event("done", 0, {}, b""), threading.Event()
    events = Events(most=3, most_bytes=100)
    for _ in range(3):
        events.put(event)

    def put():
        with pytest.raises(ConnectionError):
            events.put(event)
        refused.set()

    threading.Thread(target=put, daemon=True).start()
    assert not refused.wait(0.1)
    events.close()
    assert refused.wait(20)


def test_reports_wait_for_a_coordinator_that_comes_back():
    port = free_port()
    reporter = Reporter(("localhost", port), KEY, 0, {})
    assert not reporter.start(0.1)
    reporter.tell("metrics", {"step": 1}, b"1")
    first = Reception(port, KEY, 1, 1000, lambda greeted: None)
    assert received(first, "metrics").payload == b"1"
    first.close()


def test_what_a_coordinator_has_not_taken_is_told_to_the_next():
    port = free_port()
    reporter = Reporter(("localhost", port), KEY, 0, {})
    dying = Reception(port, KEY, 1, 1000, lambda greeted: None)
    assert reporter.start(20)
    reporter.tell("metrics", {"step": 1}, b"taken")
    assert received(dying, "metrics").payload == b"taken"
    # Its queue is full: nothing more is taken, and then it is gone.
    for _ in range(8):
        dying.events.put(Event("deliveries", 0, {}, b""))
    reporter.tell("metrics", {"step": 2}, b"not taken")
    reporter.tell("done", {})
    dying.close()
    coming = Reception(port, KEY, 1, 1000, lambda greeted: None)
    while received(coming, "metrics").payload != b"not taken":
        pass
    assert received(coming, "done")
    assert reporter.close(patient=True) == 0


def test_the_newest_metrics_are_told_to_a_coordinator_that_may_be_another():
    port = free_port()
    reporter = Reporter(("localhost", port), KEY, 0, {})
    first = Reception(port, KEY, 1, 1000, lambda greeted: None)
    assert reporter.start(20)
    for step in (1, 2):
        reporter.tell("metrics", {"step": step})
        assert received(first, "metrics").header == {"step": step}
    first.close()
    second = Reception(port, KEY, 1, 1000, lambda greeted: None)
    assert received(second, "metrics").header == {"step": 2}
    assert reporter.close(patient=True) == 0


def test_a_model_that_is_larger_than_all_that_may_wait_is_told(monkeypatch):
    monkeypatch.setattr(reports, "_MOST_WAITING_BYTES", 100)
    port = free_port()
    reporter = Reporter(("localhost", port), KEY, 0, {})
    for step in range(9):
        reporter.tell("metrics", {"step": step}, bytes(500))
    reception = Reception(port, KEY, 1, 1000, lambda greeted: None)
    assert reporter.start(20)
    assert [received(reception, "metrics").header["step"] for _ in range(4)] == [5, 6, 7, 8]
    assert reporter.close(patient=True) == 0
    reception.close()
