"""Parts of a run over UDP, each by itself; tests/test_wire.py has whole runs."""

import contextlib
import dataclasses
import errno
import itertools
import queue
import socket
import struct
import threading
import time
import tracemalloc

import jax
import numpy as np
import pytest

import rps_jax as rps
from launch.cli.command_line import UsageError
from launch.config import PRESETS
from launch.distributed.ports import free_port
from launch.tasks.source import find_source
from launch.trainer.setup import set_up
from launch.wire import coordinator, deliveries, messages, models, reports
from launch.wire.events import Event, Events
from launch.wire.lines import REPORTED, Lines, Report, merged
from launch.wire.messages import Connection
from launch.wire.reports import Reception, Reporter
from rps_jax.links import BURST_BINS
from rps_jax.transport import Exchanged

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


def test_a_long_greeting_is_not_waited_for(reception):
    with socket.create_connection(("localhost", reception.port), timeout=5) as caller:
        caller.sendall(beginning(0, 1 << 20))
        assert len(caller.recv(17, socket.MSG_WAITALL)) == 16


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


def report(step, loss=1.0, speed=10.0):
    values = {"step": step, "epoch": 0.5, "train_loss": loss, "delivered_fraction": 1.0}
    values |= {"examples_per_second": speed, "bytes_sent": 100 * loss, "links": LINKS}
    return Report.of(values | {"wall_seconds": 10 * loss}, b"", num_workers=2)


# Delivered, arrivals, bursts, dropping.
LINKS = [3, 4, 4, 4] + [0, 1, 3] + [1] + [0] * (BURST_BINS - 1) + [0, 0, 0, 0]


def test_a_line_waits_for_the_workers_that_are_there():
    lines = Lines(after=5, patience=30.0)
    lines.add(0, report(5), 0.0)  # It is written already.
    assert lines.due({0, 1, 2}, now=0.0) is None
    lines.add(0, report(10, loss=1.0), 1.0)
    lines.add(1, report(10, loss=3.0), 2.0)
    assert lines.due({0, 1, 2}, now=3.0) is None
    lines.add(2, report(20), 4.0)  # It has gone on without step 10.
    due = lines.due({0, 1, 2}, now=5.0)
    assert set(due) == {0, 1}
    line = merged(due)
    assert (line["train_loss"], line["examples_per_second"], line["workers"]) == (2.0, 20.0, 2)
    assert (line["bytes_sent"], line["wall_seconds"]) == (200, 30)
    assert lines.due({0, 1, 2}, now=33.0) is None
    assert set(lines.due({0, 1, 2}, now=34.0)) == {2}  # Long enough: 0 and 1 are given up.
    lines.add(2, report(30), 35.0)
    assert set(lines.due({0, 1, 2}, now=35.0)) == {2}
    for step in (40, 50, 60):
        lines.add(1, report(step), 36.0)
    assert lines.due({1, 2}, now=37.0) is None  # Of a backlog, nothing is lost.
    for step in (40, 50):
        lines.add(2, report(step), 38.0)
        assert set(lines.due({0, 1, 2}, now=38.0)) == {1, 2}
    assert set(lines.due({1}, now=39.0)) == {1}  # Nobody else is there.
    lines.add(1, report(100), 40.0)
    for step in (70, 80):  # Who is behind and reports is waited for.
        lines.add(2, report(step), float(step))
        assert set(lines.due({1, 2}, now=float(step))) == {2}
        assert lines.due({1, 2}, now=step + 29.0) is None


@pytest.mark.parametrize(
    "damage",
    [{"step": "1"}, {"step": -1}, {"epoch": None}]
    + [{"links": rows} for rows in (5, {}, "1", LINKS[1:], [-1, *LINKS[1:]], [0.5, *LINKS[1:]])]
    + [{"links": [[], *LINKS[1:]]}, {"links": [None, *LINKS[1:]]}],
)
def test_what_is_no_report_is_none(damage):
    whole = report(1).values | {"links": LINKS}
    assert Report.of(whole, b"", 2).links.arrivals.tolist() == [0, 1, 3]
    with pytest.raises((TypeError, ValueError)):
        Report.of(whole | damage, b"", 2)


def test_models_and_deliveries_come_back_from_their_bytes(tmp_path):
    config = PRESETS["linear"]
    setup = set_up(config, find_source(config), tmp_path)
    one = jax.tree.map(lambda leaf: leaf[:1] + 1, setup.initial)
    content = models.encode(one)
    assert len(content) == models.model_bytes(setup)
    params, _ = models.models_of(setup, [content, content])
    for found, sent in zip(jax.tree.leaves(params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_array_equal(found, np.concatenate([sent, sent]))
    models.check_model(setup, content)
    with pytest.raises(ValueError, match="expected"):
        models.check_model(setup, content[1:])

    rng, kept = np.random.default_rng(0), deliveries.Deliveries(2, tmp_path / "trace")
    for worker in range(2):
        records = [
            Exchanged(number, np.empty(0), *(rng.random((2, 2, 3)) < 0.5), shift=number % 2)
            for number in range(worker, worker + 4)
        ]
        for header, payload in deliveries.encode(records):
            kept.add(worker, header, payload)
    kept.save("2 workers")
    assert rps.Trace.load(tmp_path / "trace").arrived.shape[0] == 3


def test_many_deliveries_are_told_in_pieces():
    masks = np.ones((2, 2, 40_000), bool)
    records = [Exchanged(number, np.empty(0), *masks, shift=0) for number in range(120)]
    told = list(deliveries.encode(records))
    assert [number for header, _ in told for number in header["exchanges"]] == list(range(120))
    assert len(told) > 1
    assert all(len(payload) <= deliveries.LONGEST_BYTES for _, payload in told)
    assert not list(deliveries.encode([]))


def test_deliveries_take_little_more_memory_than_on_the_wire(tmp_path):
    masks = np.ones((2, 16, 64), bool)
    records = [Exchanged(number, np.empty(0), *masks, shift=0) for number in range(500)]
    ((header, payload),) = deliveries.encode(records)
    kept = deliveries.Deliveries(16, tmp_path / "trace")
    tracemalloc.start()
    try:
        for worker in range(16):
            kept.add(worker, header, payload)
        assert tracemalloc.get_traced_memory()[0] < 2 * 16 * len(payload)
    finally:
        tracemalloc.stop()


def test_what_comes_while_a_line_is_evaluated_counts(tmp_path, monkeypatch):
    """The end does not wait for long, but takes what is there."""
    monkeypatch.setattr(coordinator, "_ALONE_SECONDS", 0.05)
    config = dataclasses.replace(PRESETS["linear"], num_workers=2, record=tmp_path / "trace")
    setup = set_up(config, find_source(config), tmp_path)
    of_run = coordinator._Coordinator(setup, [], lambda line: None)
    monkeypatch.setattr(of_run, "_measure", lambda step, reports: time.sleep(0.2) or {})
    monkeypatch.setattr(setup.directory.__class__, "append", lambda self, line: None)
    record = Exchanged(0, np.empty(0), *np.ones((2, 2, 3), bool), shift=0)
    ((delivered, payload),) = deliveries.encode([record])
    model = bytes(models.model_bytes(setup))
    line = {"step": 10, "links": None} | dict.fromkeys(REPORTED[1:], 1.0)
    events = queue.Queue()
    for worker in range(2):
        for kind, header, content in (
            ("greeting", {}, b""),
            ("metrics", line, b"no model"),
            ("metrics", line, model),
            ("deliveries", delivered, payload),
            ("done", {}, b""),
        ):
            events.put(Event(kind, worker, header, content))
    of_run.run(events, lambda: 0)
    of_run.deliveries.save("2 workers")
    assert rps.Trace.load(tmp_path / "trace").arrived.shape[0] == 1


def test_a_coordinator_does_not_go_on_with_another_run(tmp_path):
    config = dataclasses.replace(PRESETS["linear"], num_workers=2)
    source = find_source(config)
    setup = set_up(config, source, tmp_path)
    setup.directory.create(dataclasses.replace(config, learning_rate=7.0))
    with pytest.raises(UsageError, match=r"--learning-rate .* the run in"):
        coordinator.coordinate(config, source, tmp_path, free_port(), KEY)
