"""Parts of a run over UDP, each by itself; tests/test_wire.py has whole runs."""

import dataclasses
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import launch.local
import launch.udp
import launch.wire.job
import rps_jax as rps
from launch.cli.command_line import UsageError
from launch.config import PRESETS
from launch.distributed.process import Command, JobFailed
from launch.local import free_port
from launch.tasks.source import find_source
from launch.trainer.json_files import write_json
from launch.trainer.run_directory import RunDirectory
from launch.trainer.setup import set_up
from launch.wire import coordinator, deliveries, models, reports
from launch.wire.flags import read_key
from launch.wire.lines import REPORTED, Lines, Report, merged
from launch.wire.reports import Event, Reception, Reporter
from launch.wire.supervisor import Ending, supervise_members
from rps_jax.links import BURST_BINS
from rps_jax.transport import Exchanged

ROOT = Path(__file__).parents[1]
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
    while not dying.events.full():
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


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("00" * 32, 0o644, "a file that others cannot read"),
        ("00" * 8, 0o600, "16 to 64 bytes in hexadecimal"),
        ("secret", 0o600, "16 to 64 bytes in hexadecimal"),
    ],
)
def test_a_key_file_that_is_no_secret_is_refused(tmp_path, content, mode, said):
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(UsageError, match=said):
        read_key(path)


def test_a_key_file_holds_the_key(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY.hex() + "\n")
    path.chmod(0o600)
    assert read_key(path) == KEY


UDP = ("--network", "udp", "--processes", "4")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--deadline", "1"], "--deadline 1.0 requires --network udp"),
        ([*UDP, "--devices-per-process", "1"], "--devices-per-process 1 is not allowed"),
        ([*UDP, "--link-rate", "0"], "--link-rate 0.0: expected bits a second"),
        ([*UDP, "--", "--num-workers", "8"], "--processes 4: expected 8, a process a worker"),
        ([*UDP, "--", "--drop-rate", "0.3"], "--drop-rate 0.3 is not allowed with --network udp"),
        ([*UDP, "--", "--algorithm", "all-reduce"], "--algorithm all-reduce requires a reliable"),
        ([*UDP, "--", "--workers-per-device", "4"], "--workers-per-device 4 is not allowed with"),
        ([*UDP, "--", "--server", "stale"], "--server stale is not allowed with --network udp"),
    ],
)
def test_what_cannot_be_over_udp_is_refused(argv, said, capsys):
    assert launch.local.main(argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["worker", "--worker", "0"], "--worker 0 requires --addresses"),
        (["worker", "--worker", "2", "--addresses", "a:1", "b:1"], "--worker 2: expected 0 to 1"),
        (["worker", "--worker", "0", "--addresses", "a"], "--addresses a: expected HOST:PORT"),
        (["worker", "--worker", "0", "--addresses", "a:1"], "--addresses a:1: expected 2, one a"),
        (["coordinator"], "--key-file: expected a file with the run's key, or"),
        (["coordinator", "--port", "0"], "--port 0: expected a port"),
        (
            ["worker", "--worker", "0", "--addresses", "a:1", "b:1", "--", "--record", "FILE"],
            "--record FILE requires --coordinator, which writes it",
        ),
    ],
)
def test_a_worker_is_told_what_it_lacks(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch.udp.main([*argv, *["--"][: "--" not in argv], "--num-workers", "2"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize("own", ["worker --worker 0 --addresses a:1", "coordinator"])
def test_a_process_that_is_started_by_hand_is_told_its_folder(own, capsys):
    of_training = ["--preset", "linear", "--num-workers", "1"]
    assert launch.udp.main([*own.split(), "--no-authentication", "--", *of_training]) == 2
    assert capsys.readouterr().err == (
        "error: --output-dir: expected the folder of the run, the same for all of its processes\n"
    )


def test_a_coordinator_does_not_do_again_what_is_done(tmp_path, capsys):
    write_json(tmp_path / "summary.json", {"score": "x", "data": "", "x": 1, "wall_seconds": 1})
    of_training = ["--preset", "linear", "--output-dir", str(tmp_path)]
    assert launch.udp.main(["coordinator", "--no-authentication", "--", *of_training]) == 2
    assert capsys.readouterr().err == (
        f"error: --output-dir {tmp_path}: expected a run that is not done (--resume goes on with "
        "it)\n"
    )


def test_another_number_of_workers_is_not_advised(tmp_path, capsys):
    config = dataclasses.replace(PRESETS["linear"], num_workers=2, network="udp")
    RunDirectory(tmp_path).create(config)
    assert launch.local.main([*UDP, "--", "--resume", "--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: --num-workers 4: expected 2, as the run in {tmp_path} has it\n"
    )


@pytest.mark.parametrize(
    ("begun", "unsaved", "said"),
    [
        (True, (), "each worker with a checkpoint; go on with the same command and\n--resume "),
        (True, (1, 3), "each worker but worker 1, worker 3 with a checkpoint; go on with the "),
        (True, (0, 1, 2, 3), "no worker with a new checkpoint; go on with the same command and"),
        (False, (0, 1, 2, 3), "no worker with a new checkpoint; start again with the same command"),
    ],
)
def test_who_stops_a_job_is_told_what_was_saved(
    tmp_path, monkeypatch, capsys, begun, unsaved, said
):
    ending = Ending(128 + signal.SIGTERM, tuple(f"worker {number}" for number in unsaved))
    monkeypatch.setattr(launch.wire.job, "supervise_members", lambda *_: ending)
    out = stopped_or_failed(tmp_path, monkeypatch, begun, 128 + signal.SIGTERM, capsys).out
    assert out.startswith(f"stopped by SIGTERM, {said}")
    assert ("--resume" in out) == begun
    assert out.endswith(f"--output-dir {tmp_path}\n")


@pytest.mark.parametrize(("begun", "status"), [(True, 1), (True, 2), (False, 1)])
def test_who_sees_a_job_fail_is_told_how_it_goes_on(tmp_path, monkeypatch, capsys, begun, status):
    def supervise(*_):
        raise JobFailed("coordinator failed", status)

    monkeypatch.setattr(launch.wire.job, "supervise_members", supervise)
    err = stopped_or_failed(tmp_path, monkeypatch, begun, status, capsys).err
    go_on = f"go on with the same command and\n--resume --output-dir {tmp_path}\n"
    assert err == "error: coordinator failed\n" + go_on * (begun and status == 1)


def stopped_or_failed(folder, monkeypatch, begun, status, capsys):
    """Runs `launch.local`, in a folder where a run has begun since or not; returns what it said."""
    monkeypatch.setattr(RunDirectory, "check_is_free", lambda self: None)
    if begun:
        RunDirectory(folder).create(PRESETS["linear"])
    of_training = ["--preset", "linear", "--epochs", "30", "--output-dir", str(folder)]
    assert launch.local.main([*UDP, "--", *of_training]) == status
    return capsys.readouterr()


@pytest.mark.parametrize("taken", ["port", pytest.param("addresses", marks=pytest.mark.long)])
def test_a_port_that_is_taken_is_named(taken, capfd, tmp_path):
    kind = socket.SOCK_STREAM if taken == "port" else socket.SOCK_DGRAM
    with socket.socket(type=kind) as other:
        other.bind(("127.0.0.1" if taken == "addresses" else "", 0))
        port = other.getsockname()[1]
        if taken == "port":
            other.listen()
        own = {
            "port": ["coordinator", "--port", str(port)],
            "addresses": ["worker", "--worker", "0", "--addresses", f"127.0.0.1:{port}"],
        }[taken]
        of_training = ["--preset", "linear", "--num-workers", "1", "--output-dir", str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-m", "launch.udp", *own, "--no-authentication", "--", *of_training],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    assert done.returncode == 2
    said = {"port": f"--port {port}", "addresses": f"--addresses 127.0.0.1:{port}"}[taken]
    assert done.stderr.startswith(f"error: {said}: expected one"), done.stderr
    assert done.stderr.endswith("(Address already in use)\n")
    assert not list(tmp_path.iterdir())


def test_a_coordinator_does_not_go_on_with_another_run(tmp_path):
    config = dataclasses.replace(PRESETS["linear"], num_workers=2)
    source = find_source(config)
    setup = set_up(config, source, tmp_path)
    setup.directory.create(dataclasses.replace(config, learning_rate=7.0))
    with pytest.raises(UsageError, match=r"--learning-rate .* the run in"):
        coordinator.coordinate(config, source, tmp_path, free_port(), KEY)


PREAMBLE = """
import os, signal, sys, time
from launch.distributed.heartbeat import *
start_heartbeat()
NUMBER, FOLDER = {number}, {folder!r}
open(f"{{FOLDER}}/{{NUMBER}} {{os.getpid()}}", "w")

def lives(number):
    return [name.split()[1] for name in os.listdir(FOLDER) if name.startswith(f"{{number}} ")]

def runs(number):
    return not lives(number) or os.path.exists(f"/proc/{{lives(number)[-1]}}")

def wait_while(holds):
    while holds():
        time.sleep(0.02)

"""


def scripts(tmp_path, *bodies):
    """How processes of a job are started, the last as the coordinator."""
    folder = tmp_path / "lives"
    folder.mkdir()
    preambles = (PREAMBLE.format(number=n, folder=str(folder)) for n in range(len(bodies)))
    return [
        Command(
            [sys.executable, "-c", preamble + body],
            {"PYTHONPATH": str(ROOT)},
            name=f"member {number}",
            secret=KEY,
        )
        for number, (preamble, body) in enumerate(zip(preambles, bodies, strict=True))
    ]


def supervised_run(tmp_path, *bodies, max_restarts=0, silence=60.0):
    """Runs scripts; returns how the job has ended, and what was shown."""
    shown, commands = [], scripts(tmp_path, *bodies)
    ending = supervise_members(commands, tmp_path / "logs", silence, shown.append, max_restarts)
    return ending, shown


def stopped_run(tmp_path, lines, *bodies):
    """Runs scripts that are asked to stop when so many lines were shown."""
    shown, commands = [], scripts(tmp_path, *bodies)

    def stop():
        while len(shown) < lines:
            time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    return supervise_members(commands, tmp_path / "logs", 60.0, shown.append, 0), shown


KILLED_ONCE = "if len(lives(NUMBER)) == 1: os.kill(os.getpid(), 9)\n"


def test_a_process_that_dies_is_started_again_and_the_others_go_on(tmp_path):
    until_it_is_back = "wait_while(lambda: len(lives(0)) < 2)"
    ending, shown = supervised_run(tmp_path, KILLED_ONCE, "", until_it_is_back, max_restarts=1)
    assert ending == Ending(0)
    assert shown == ["member 0 was killed by SIGKILL, and is started again"]


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_later_life_whose_place_is_taken_does_not_end_the_job(tmp_path, restarts):
    taken = KILLED_ONCE + "if len(lives(NUMBER)) == 2: sys.exit(2)"
    others = f"wait_while(lambda: len(lives(0)) < {restarts + 1} or runs(0))"
    ending, shown = supervised_run(tmp_path, taken, others, others, max_restarts=restarts)
    assert ending == Ending(0)
    then = ["; the others go on", ", and is started again in 1 s"]
    assert shown == [
        "member 0 was killed by SIGKILL, and is started again",
        f"member 0 ended with status 2{then[restarts - 1]}",
    ]


def test_without_restarts_a_process_that_dies_is_missed(tmp_path):
    ending, shown = supervised_run(tmp_path, "sys.exit(7)", "", "time.sleep(0.5)")
    assert ending == Ending(0)
    assert shown == ["member 0 ended with status 7; the others go on"]


@pytest.mark.parametrize(
    ("bodies", "status", "restarts"),
    [
        (("sys.exit(2)", "time.sleep(60)", "time.sleep(60)"), 2, 1),  # All would end like this.
        ((KILLED_ONCE + "sys.exit(3)", "time.sleep(60)", "time.sleep(60)"), 3, 2),  # And this.
        (("sys.exit(7)", "sys.exit(8)", "time.sleep(60)"), 8, 0),
        (("", "", "sys.exit(5)"), 5, 0),
        ((KILLED_ONCE + "sys.exit(2)", "time.sleep(60)"), 1, 1),
    ],
)
def test_a_job_without_a_result_fails(tmp_path, bodies, status, restarts):
    with pytest.raises(JobFailed) as failed:
        supervised_run(tmp_path, *bodies, max_restarts=restarts)
    assert failed.value.exit_status == status


FREEZES = "time.sleep(0.5); os.kill(os.getpid(), signal.SIGSTOP)"  # After a heartbeat.


@pytest.mark.long
@pytest.mark.parametrize("other", ["", FREEZES])
def test_a_coordinator_that_hangs_is_not_waited_for(tmp_path, other):
    silent = r"member 2 has sent no heartbeat for \d+ s, and was ended"
    with pytest.raises(JobFailed, match=silent):
        supervised_run(tmp_path, "", other, FREEZES, silence=3.0)


def test_a_coordinator_that_is_left_alone_is_started_again_once(tmp_path):
    shown = []
    commands = scripts(tmp_path, "", "wait_while(lambda: runs(0)); sys.exit(5)")
    with pytest.raises(JobFailed, match="member 1 ended with status 5"):
        supervise_members(commands, tmp_path / "logs", 60.0, shown.append, 9)
    assert shown == ["member 1 ended with status 5, and is started again"]


WAITS = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit({}))
print(wait_for_secret(20).decode(), flush=True)
time.sleep(60)
"""


def test_every_process_gets_the_key_and_the_signal(tmp_path):
    saves = WAITS.format(128 + signal.SIGTERM)
    ending, shown = stopped_run(tmp_path, 3, saves, WAITS.format(0), saves)
    assert ending == Ending(128 + signal.SIGINT)
    assert sorted(shown) == [f"[member {number}] {KEY.decode()}" for number in range(3)]


def test_workers_that_have_saved_nothing_are_named(tmp_path):
    saves, fails = WAITS.format(128 + signal.SIGTERM), WAITS.format(1)
    begins = "print('begins', flush=True); time.sleep(60)"
    ending, _ = stopped_run(tmp_path, 5, fails, saves, "sys.exit(7)", begins, saves)
    assert ending == Ending(128 + signal.SIGINT, ("member 0", "member 2", "member 3"))
