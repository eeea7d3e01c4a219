"""Runs over UDP on this machine's loopback: several processes, some of which die."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from bed import bed_or_skip
from run_files import read_metrics, saved_state

import launch.train
import rps_jax as rps
from launch.bed import Link
from launch.benchmarks.training import Hosts
from launch.distributed.ports import free_port, free_ports
from launch.json_objects import read_object

ROOT = Path(__file__).parents[1]
LINEAR = ("--preset", "linear", "--batch-size", "32", "--checkpoint-every", "1")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


class Job:
    """A running `launch.local --network udp`."""

    def __init__(self, folder: Path, processes: int, *argv: str, before: tuple[str, ...] = ()):
        self.folder = folder
        argv = (*LINEAR, "--output-dir", str(folder), *argv)
        of_launcher = ("--network", "udp", "--processes", str(processes), *before)
        self.launcher = subprocess.Popen(
            [sys.executable, "-m", "launch.local", *of_launcher, "--", *argv],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, holds) -> None:
        """Waits until a line of metrics is such."""
        while self.launcher.poll() is None:
            with contextlib.suppress(OSError):
                if any(map(holds, read_metrics(self.folder))):
                    return
            time.sleep(0.02)
        raise AssertionError(self.end())

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda line: line["step"] >= step)

    def process(self, *words: str) -> int:
        """Returns the process id of the one that was started with some words, in a row."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        for child in children.read_text().split():
            with contextlib.suppress(OSError):  # It has ended since.
                argv = Path(f"/proc/{child}/cmdline").read_text()
                if "\0".join(["", *words, ""]) in argv:
                    return int(child)
        raise AssertionError(f"{words} do not run")

    def worker(self, number: int) -> int:
        return self.process("--worker", str(number))

    def end(self) -> str:
        said, _ = self.launcher.communicate(timeout=240)
        return said


def params(folder: Path, step: int) -> list[np.ndarray]:
    return jax.tree.leaves(saved_state(folder, step)["params"])


@pytest.mark.long
def test_a_recorded_run_replays_in_the_simulation(tmp_path):
    over_udp, simulated, trace = (tmp_path / name for name in ("udp", "simulated", "trace"))
    flags = ["--algorithm", "overlap", "--epochs", "2"]
    job = Job(over_udp, 2, *flags, "--record", str(trace))
    said = job.end()
    assert job.launcher.returncode == 0, said
    simulate(simulated, trace, 2, *flags)
    assert_same_run(over_udp, simulated, 2)
    assert (tmp_path / "trace.png").exists()
    assert read_object(over_udp / "summary.json", lambda _: True)["network"] == "udp"


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["rps", "gradient-averaging"])
def test_a_run_over_links_that_drop_replays_in_the_simulation(tmp_path, algorithm):
    """The law of the wire, by the commands: hosts of their own, a tenth of all packets dropped."""
    over_udp, simulated, trace, again = (tmp_path / name for name in ("udp", "one", "trace", "2"))
    flags = ["--algorithm", algorithm, "--epochs", "2"]
    with bed_or_skip(3, Link(rate=200e6, drop_rate=0.1)) as bed:
        before = bed.counts()
        command = [sys.executable, "-m", "launch.hosts", *Hosts(bed, tmp_path).flags]
        command += ["--network", "udp", "--", *LINEAR, *flags]
        command += ["--output-dir", str(over_udp), "--record", str(trace)]
        subprocess.run(command, env=ENVIRONMENT, check=True, timeout=240)
        assert bed.counts().since(before).random_drops > 0
    simulate(simulated, trace, 3, *flags, "--record", str(again))
    last = assert_same_run(over_udp, simulated, 3)
    assert 0.5 < last["delivered_fraction"] < 0.99
    recorded, replayed = rps.Trace.load(trace), rps.Trace.load(again)
    np.testing.assert_array_equal(recorded.arrived, replayed.arrived)
    np.testing.assert_array_equal(recorded.shifts, replayed.shifts)


def simulate(folder: Path, trace: Path, num_workers: int, *flags: str) -> None:
    """Trains in this process, with the drops of a trace."""
    argv = [*LINEAR, *flags, "--num-workers", str(num_workers), "--output-dir", str(folder)]
    argv += ["--channel", "trace", "--trace", str(trace)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch.train, "start_devices", lambda *workers: None)
        assert launch.train.main(argv) == 0


def assert_same_run(over_udp: Path, simulated: Path, num_workers: int) -> dict[str, Any]:
    """Compares a run over UDP to the simulation; returns the last line of its metrics."""
    *_, last = read_metrics(over_udp)
    *_, expected = read_metrics(simulated)
    assert last["workers"] == num_workers
    # Of a channel that nobody knows, nothing is predicted.
    predicted = {"consensus_distance_predicted", "update_spread", "update_correlation"}
    assert last.keys() - {"workers"} == expected.keys() - predicted
    for name in ("train_loss", "mean_model_train_loss", "test_loss", "delivered_fraction"):
        assert last[name] == pytest.approx(expected[name], rel=1e-4)
    # Datagrams have headers, and reports go beside them.
    assert last["bytes_sent_per_worker"] > expected["bytes_sent_per_worker"]
    for name in ("delivered_by_link", "arrivals", "bursts", "mean_burst_length"):
        assert last[name] == expected[name]
    together = params(simulated, last["step"])
    for worker in range(num_workers):
        own = params(over_udp / "workers" / str(worker), last["step"])
        for found, of_all in zip(own, together, strict=True):
            np.testing.assert_allclose(found[0], of_all[worker], atol=1e-5)
    return last


LONG = ("--epochs", "2000", "--log-every", "20")


@pytest.mark.long
def test_a_worker_that_is_killed_is_missed_and_comes_back(tmp_path):
    job = Job(tmp_path, 3, *LONG, before=("--max-restarts", "1", "--deadline", "1"))
    job.wait_for_step(1)
    os.kill(job.worker(1), signal.SIGKILL)
    job.wait_for(lambda line: line["workers"] == 2)
    missed = read_metrics(tmp_path)[-1]["step"]
    job.wait_for(lambda line: line["step"] > missed and line["workers"] == 3)
    job.wait_for(lambda line: line["step"] > missed and line["delivered_fraction"] > 0.99)
    job.launcher.send_signal(signal.SIGTERM)
    said = job.end()
    assert job.launcher.returncode == 128 + signal.SIGTERM
    assert "worker 1 was killed by SIGKILL, and is started again" in said
    assert f"--resume --output-dir {tmp_path}" in said
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == sorted(set(steps))


@pytest.mark.long
def test_the_coordinator_may_die_and_a_worker_may_freeze(tmp_path):
    job = Job(tmp_path, 3, *LONG, before=("--max-restarts", "1"))
    job.wait_for_step(1)
    os.kill(job.process("coordinator"), signal.SIGKILL)
    time.sleep(0.5)
    reached = read_metrics(tmp_path)[-1]["step"]
    job.wait_for_step(reached + 1)
    worker = job.worker(2)
    os.kill(worker, signal.SIGSTOP)
    job.wait_for(lambda line: line["delivered_fraction"] < 0.8)
    os.kill(worker, signal.SIGCONT)
    frozen = read_metrics(tmp_path)[-1]["step"]
    job.wait_for(lambda line: line["step"] > frozen and line["delivered_fraction"] > 0.99)
    job.launcher.send_signal(signal.SIGTERM)
    said = job.end()
    assert "coordinator was killed by SIGKILL, and is started again" in said
    assert "worker" not in "".join(line for line in said.splitlines() if "killed" in line)


@pytest.mark.long
def test_a_run_goes_on_when_all_of_it_was_killed(tmp_path):
    job = Job(tmp_path, 2, "--epochs", "16")
    job.wait_for_step(44)
    job.launcher.kill()  # Nothing stays behind.
    job.end()
    unheard = Job(tmp_path, 2, "--resume")
    reached = read_metrics(tmp_path)[-1]["step"]
    unheard.wait_for_step(reached + 1)
    os.kill(unheard.process("coordinator"), signal.SIGKILL)
    said = unheard.end()  # The workers are done, and nobody has heard of it.
    assert unheard.launcher.returncode == 128 + signal.SIGKILL, said
    assert "resuming at step " in said
    assert "resuming at step 0 " not in said
    again = Job(tmp_path, 2, "--resume")
    said = again.end()
    assert again.launcher.returncode == 0, said
    last = read_metrics(tmp_path)[-1]
    assert (last["epoch"], last["workers"]) == (16, 2)
    # Nor can the simulation go on with it.
    assert launch.train.main(["--resume", "--output-dir", str(tmp_path)]) == 2


@pytest.mark.long
def test_a_recorded_run_may_be_killed_and_go_on(tmp_path):
    folder, trace = tmp_path / "run", tmp_path / "trace"
    recorded = ("--record", str(trace))
    job = Job(folder, 2, *LONG, *recorded, before=("--max-restarts", "1", "--deadline", "1"))
    job.wait_for_step(1)
    os.kill(job.worker(1), signal.SIGKILL)
    job.wait_for(lambda line: line["workers"] == 1)
    missed = read_metrics(folder)[-1]["step"]
    job.wait_for(lambda line: line["step"] > missed and line["workers"] == 2)
    os.kill(job.process("coordinator"), signal.SIGKILL)
    for again in (job, None):
        job = again or Job(folder, 2, "--resume", *recorded)
        reached = read_metrics(folder)[-1]["step"]
        job.wait_for(lambda line, step=reached: line["step"] > step and line["workers"] == 2)
        job.launcher.send_signal(signal.SIGTERM)
        said = job.end()
        assert job.launcher.returncode == 128 + signal.SIGTERM, said
        assert f"{trace} has " in said  # Not of all exchanges.
        assert rps.Trace.load(trace).arrived.any()
        trace.unlink()


@pytest.mark.long
def test_workers_that_send_nothing_train(tmp_path):
    job = Job(tmp_path, 2, "--algorithm", "local", "--epochs", "2")
    said = job.end()
    assert job.launcher.returncode == 0, said
    last = read_metrics(tmp_path)[-1]
    assert (last["epoch"], last["workers"], last["bytes_sent_per_worker"]) == (2, 2, 0)


@pytest.mark.long
def test_workers_may_be_started_by_hand(tmp_path):
    key = tmp_path / "key"
    key.write_text("0f" * 32)
    key.chmod(0o600)
    ports = [f"127.0.0.1:{port}" for port in free_ports(2, socket.SOCK_DGRAM)]
    coordinator = free_port()
    of_run = ["--key-file", str(key), "--", *LINEAR, "--num-workers", "2", "--epochs", "2"]
    of_run += ["--output-dir", str(tmp_path / "run")]
    of_worker = ["--addresses", *ports, "--coordinator", f"127.0.0.1:{coordinator}"]
    commands = [["worker", "--worker", str(number), *of_worker] for number in range(2)]
    commands.append(["coordinator", "--port", str(coordinator)])
    processes = [
        subprocess.Popen([sys.executable, "-m", "launch.udp", *command, *of_run], env=ENVIRONMENT)
        for command in commands
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert read_metrics(tmp_path / "run")[-1]["epoch"] == 2
