"""Parts of a run over UDP, each by itself; tests/test_wire.py has whole runs."""

import contextlib
import dataclasses
import queue
import signal
import time
import tracemalloc

import jax
import numpy as np
import pytest
from datagrams import KEY, addresses

import rps_jax as rps
from launch.cli.command_line import UsageError
from launch.config import PRESETS
from launch.distributed.ports import free_port
from launch.tasks.source import find_source
from launch.trainer.preemption import Stopped
from launch.trainer.setup import set_up
from launch.wire import coordinator, deliveries, greeting, models
from launch.wire.events import Event
from launch.wire.lines import REPORTED, Lines, Report, merged
from launch.wire.reports import Reception, Reporter
from launch.wire.worker import _Reports, train_worker
from rps_jax import transport
from rps_jax.links import BURST_BINS
from rps_jax.transport import Exchanged


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


def test_models_and_deliveries_come_back_from_their_bytes(tmp_path, capsys):
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

    rng, kept = np.random.default_rng(0), deliveries.Deliveries(2, tmp_path / "new" / "trace")
    for worker in range(2):
        records = [
            Exchanged(number, np.empty(0), *(rng.random((2, 2, 3)) < 0.5), shift=number % 2)
            for number in range(worker, 5)
        ]
        for header, payload in deliveries.encode(records):
            kept.add(worker, header, payload)
    kept.save("2 workers")
    assert rps.Trace.load(tmp_path / "new" / "trace").arrived.shape[0] == 4
    said = capsys.readouterr().out
    assert "has 4 of 5 exchanges: not those of which nothing was reported by worker 1\n" in said


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


def of_run(tmp_path, monkeypatch, **changes):
    """A coordinator of two workers, its setup, a worker's metrics, and the lines that it writes."""
    config = dataclasses.replace(PRESETS["linear"], num_workers=2, **changes)
    setup, written = set_up(config, find_source(config), tmp_path), []
    monkeypatch.setattr(
        setup.directory.__class__, "append", lambda self, line: written.append(line)
    )
    line = {"step": 10, "links": None} | dict.fromkeys(REPORTED[1:], 1.0)
    return coordinator._Coordinator(setup, [], lambda line: None), setup, line, written


def test_what_comes_while_a_line_is_evaluated_counts(tmp_path, monkeypatch):
    """The end does not wait for long, but takes what is there."""
    monkeypatch.setattr(coordinator, "_ALONE_SECONDS", 0.05)
    made, setup, line, written = of_run(tmp_path, monkeypatch, record=tmp_path / "trace")
    monkeypatch.setattr(made, "_measure", lambda step, reports: time.sleep(0.2) or {})
    record = Exchanged(0, np.empty(0), *np.ones((2, 2, 3), bool), shift=0)
    ((delivered, payload),) = deliveries.encode([record])
    model = bytes(models.model_bytes(setup))
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
    made.run(events, lambda: 0)
    made.deliveries.save("2 workers")
    assert rps.Trace.load(tmp_path / "trace").arrived.shape[0] == 1
    assert [(each["step"], each["workers"]) for each in written] == [(10, 2)]


@pytest.mark.parametrize(
    ("of_other", "waits"),
    [(["greeting"], True), (["greeting", "gone"], False), (["greeting", "greeting", "gone"], True)],
)
def test_a_line_waits_for_the_connected_and_is_written_when_the_run_is_stopped(
    tmp_path, monkeypatch, of_other, waits
):
    monkeypatch.setattr(coordinator, "_MEETING_SECONDS", 0.0)
    made, setup, line, written = of_run(tmp_path, monkeypatch)
    monkeypatch.setattr(made, "_measure", lambda step, reports: {})
    events, before = queue.Queue(), []
    for kind in of_other:
        events.put(Event(kind, 1, {}, b""))
    events.put(Event("greeting", 0, {}, b""))
    events.put(Event("metrics", 0, line, bytes(models.model_bytes(setup))))

    def stopped():
        before.append(len(written))
        return events.empty()

    made.run(events, stopped)
    assert before[-1] == (0 if waits else 1)
    assert [(each["step"], each["workers"]) for each in written] == [(10, 1)]
    assert made.reached == 10


@pytest.mark.parametrize("exchanges", [0, 2])
def test_a_coordinator_that_is_stopped_writes_the_trace_of_what_there_is(
    tmp_path, monkeypatch, exchanges
):
    config = dataclasses.replace(PRESETS["linear"], num_workers=2, record=tmp_path / "trace")
    records = [
        Exchanged(number, np.empty(0), *np.ones((2, 2, 3), bool), shift=0)
        for number in range(exchanges)
    ]

    def run(self, events, stopped):
        for worker in range(2):
            for header, payload in deliveries.encode(records):
                self.deliveries.add(worker, header, payload)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(coordinator._Coordinator, "run", run)
    with pytest.raises(Stopped) as stopped:
        coordinator.coordinate(config, find_source(config), tmp_path, free_port(), bytes(16))
    assert (stopped.value.exit_status, stopped.value.report()) == (128 + signal.SIGTERM, "")
    assert config.record.exists() == (exchanges > 0)


def test_a_line_that_was_cut_does_not_spoil_the_next(tmp_path, monkeypatch):
    config = dataclasses.replace(PRESETS["linear"], num_workers=2)
    source = find_source(config)
    directory = set_up(config, source, tmp_path).directory
    directory.create(config)
    names = ("epoch", "train_loss", "delivered_fraction", "examples_per_second")
    line = dict.fromkeys((*names, "consensus_distance"), 1.0)
    directory.append(line | {"step": 1})
    with directory.metrics.open("a") as file:
        file.write('{"step": 2, ')

    def run(self, events, stopped):
        self._setup.directory.append(line | {"step": self.reached + 1})

    monkeypatch.setattr(coordinator._Coordinator, "run", run)
    with pytest.raises(coordinator.WorkersGone, match="no worker has reported step"):
        coordinator.coordinate(config, source, tmp_path, free_port(), bytes(16))
    assert [each["step"] for each in directory.read_metrics()] == [1, 2]


def test_a_coordinator_does_not_go_on_with_another_run(tmp_path):
    config = dataclasses.replace(PRESETS["linear"], num_workers=2)
    source = find_source(config)
    setup = set_up(config, source, tmp_path)
    setup.directory.create(dataclasses.replace(config, learning_rate=7.0))
    with pytest.raises(UsageError, match=r"--learning-rate .* the run in"):
        coordinator.coordinate(config, source, tmp_path, free_port(), bytes(16))


def test_a_worker_of_another_configuration_is_refused_before_it_trains(tmp_path):
    config = dataclasses.replace(PRESETS["linear"], num_workers=1, epochs=1)
    source = find_source(config)
    setup = set_up(dataclasses.replace(config, learning_rate=7.0), source, tmp_path)
    of_run = Event("greeting", 0, greeting.greeting(setup), b"")
    assert greeting.refusal(of_run, setup) is None
    said = r"worker 0 on .* has --learning-rate .* instead of 7\.0, as the coordinator has"
    reception = Reception(free_port(), KEY, 1, 0, lambda greeted: greeting.refusal(greeted, setup))
    with contextlib.closing(reception), transport.join(addresses(1), 0, KEY) as network:
        place = "localhost", reception.port
        with pytest.raises(UsageError, match=said):
            train_worker(config, source, tmp_path / "run", network, place, KEY)
        assert network.next_exchange == 0
        # A coordinator that comes late finds out later.
        reporter = Reporter(place, KEY, 0, {"same": {}})
        assert reporter.start(20)
        with pytest.raises(UsageError, match="as the coordinator has"):
            _Reports(network, reporter, lambda line: None).write({}, setup.initial)
