"""The commands of runs over UDP: what is refused, and what is said of a job that stops or fails."""

import dataclasses
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import launch.local
import launch.udp
import launch.wire.job
from launch.cli.command_line import UsageError
from launch.config import PRESETS, parse
from launch.distributed.process import Command, JobFailed
from launch.json_objects import write_json
from launch.trainer.run_directory import RunDirectory
from launch.wire.flags import UdpFlags, read_key
from launch.wire.job import udp_job
from launch.wire.supervisor import Ending
from rps_jax import transport

ROOT = Path(__file__).parents[1]
KEY = b"0123456789abcdef"


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
        ([*UDP, "--", "--profile", "x"], "--profile x is not allowed with --network udp"),
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


@pytest.mark.parametrize("dscp", ["le", "default"])
def test_what_a_worker_is_given_reaches_its_network(tmp_path, monkeypatch, dscp):
    asked = {}

    def join(*arguments, **options):
        asked.update(options, arguments=arguments)
        raise OSError("enough")

    monkeypatch.setattr(transport, "join", join)
    for name in ("start_devices", "take_gpu"):
        monkeypatch.setattr(launch.udp, name, lambda *_: None)
    path = tmp_path / "key"
    path.write_text(KEY.hex())
    path.chmod(0o600)
    own = ["--worker", "1", "--addresses", "a:1", "b:2", "--key-file", str(path), "--dscp", dscp]
    own += ["--mtu", "1500", "--deadline", "2", "--link-rate", "1e6"]
    of_training = ["--preset", "linear", "--num-workers", "2", "--output-dir", str(tmp_path)]
    of_training += ["--seed", "3", "--assignment", "fixed", "--start-timeout", "4"]
    assert launch.udp.main(["worker", *own, "--", *of_training]) == 2
    assert asked == {
        "arguments": ([("a", 1), ("b", 2)], 1, KEY),
        "seed": 3,
        "link_rate": 1e6,
        "deadline": 2.0,
        "mtu": 1500,
        "start_timeout": 4.0,
        "lower_effort": dscp == "le",
        "assignment": "fixed",
        "record": False,
    }


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


def test_a_recorded_run_goes_on(tmp_path):
    """As a process does that is started again: what it knows of the trace is new, too."""
    RunDirectory(tmp_path).create(dataclasses.replace(PRESETS["linear"], network="udp"))
    of_run = ["--output-dir", str(tmp_path), "--record", "trace"]
    for flag in ("--resume", "--auto-resume"):
        assert parse([flag, *of_run], "udp").resume


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


@pytest.mark.parametrize(
    ("host", "at"), [("127.0.0.1", ["--host", "127.0.0.1"]), ("first", []), ("[::2]", [])]
)
def test_a_coordinator_on_the_loopback_listens_there_alone(monkeypatch, tmp_path, host, at):
    commands = []

    def supervise(started, *_):
        commands.extend(started)
        return Ending(0)

    monkeypatch.setattr(launch.wire.job, "supervise_members", supervise)
    job = udp_job(["--preset", "linear", "--output-dir", str(tmp_path / "run")], "processes", 4)
    addresses = [f"{host}:{port}" for port in range(1, 5)]
    launch.wire.job.run_over_udp(
        job, UdpFlags(), addresses, f"{host}:9", lambda _, argv, options: Command(argv, {}), 1.0, 0
    )
    *_, (listening, *_) = commands
    assert listening[2 : listening.index("--")] == ["coordinator", "--port", "9", *at]


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
